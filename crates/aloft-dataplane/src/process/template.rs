//! Filling in the placeholders of a task's arguments.

use aloft_plane::LeasedAttempt;
use jiff::Timestamp;

use crate::checkpoint;

/// The file name of an action's inputs.
const INPUTS: &str = "inputs.pb";

/// What the placeholders of one attempt stand for.
pub struct Vars<'a>(pub &'a LeasedAttempt);

impl Vars<'_> {
    /// The value of placeholder `name` (lower case, without its dot), if it is one that the contract knows.
    fn get(&self, name: &str) -> Option<String> {
        let LeasedAttempt { lease, input_uri, output_prefix, previous_prefix, .. } = self.0;
        let id = &lease.id;
        let scope = &id.run.scope;
        Some(match name {
            "input" => input_uri.clone(),
            "inputprefix" => input_uri.strip_suffix(INPUTS).unwrap_or(input_uri).trim_end_matches('/').to_owned(),
            "outputprefix" => output_prefix.clone(),
            "rawoutputdataprefix" => self.0.raw_prefix(),
            "checkpointoutputprefix" => checkpoint::uri(output_prefix),
            "prevcheckpointprefix" if previous_prefix.is_empty() => String::new(),
            "prevcheckpointprefix" => checkpoint::uri(previous_prefix),
            "runname" | "executionname" => id.run.name.clone(),
            "actionname" => id.action.to_string(),
            // The SDK puts this value into the arguments of the actions below, and their names are hashes of those: it
            // must be the same text in every attempt.
            "runstarttime" => Timestamp::from_microsecond(self.0.run_start_time.as_micros()).ok()?.to_string(),
            "perretryuniquekey" => unique_key(&format!("{}-{}-{}", id.run.name, id.action, id.attempt)),
            "executionproject" => scope.project.clone(),
            "executiondomain" => scope.domain.clone(),
            "executionorg" => scope.org.clone(),
            _ => return None,
        })
    }
}

/// A name that languages and databases take as an identifier.
fn unique_key(name: &str) -> String {
    let mut key: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !key.starts_with(|c: char| c.is_ascii_alphabetic()) {
        key.insert(0, 'a');
    }
    key
}

/// `text` with its placeholders (`{{.input}}`, in any case, `$` for the dot) filled in. Unknown ones stay as they are: they
/// may be the task's own.
pub fn substitute(text: &str, vars: &Vars<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = from.find("}}") else {
            rest = from;
            break;
        };
        // In `{{{.input}}` the placeholder is what the last pair of braces opens.
        let open = from[..end].rfind("{{").unwrap_or(0);
        out.push_str(&from[..open]);
        let name = from[open + 2..end].trim();
        let value = name.strip_prefix(['.', '$']).and_then(|name| vars.get(&name.to_ascii_lowercase()));
        match value {
            Some(value) => out.push_str(&value),
            None => out.push_str(&from[open..end + 2]),
        }
        rest = &from[end + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::attempt;

    #[test]
    fn placeholders_are_filled_in() {
        let mut a = attempt("r1", "a0", 1);
        let cases = [
            ("{{.input}}", "s3://b/p/r1/a0/inputs.pb"),
            ("{{ .Input }}", "s3://b/p/r1/a0/inputs.pb"),
            ("{{$INPUT}}", "s3://b/p/r1/a0/inputs.pb"),
            ("{{.inputPrefix}}", "s3://b/p/r1/a0"),
            ("{{.outputPrefix}}", "s3://b/p/r1/a0/1"),
            ("{{.rawOutputDataPrefix}}", "s3://b/p/r1/a0/1"),
            ("{{.checkpointOutputPrefix}}", "s3://b/p/r1/a0/1/_flytecheckpoints"),
            ("{{.prevCheckpointPrefix}}", ""),
            ("{{.runName}}/{{.actionName}}", "r1/a0"),
            ("{{.runStartTime}}", "2026-01-31T09:30:00.25Z"),
            ("{{.perRetryUniqueKey}}", "r1_a0_1"),
            ("{{.executionOrg}}.{{.executionProject}}.{{.executionDomain}}", "org.proj.dev"),
            ("x{{.input}}y{{.nope}}z{{", "xs3://b/p/r1/a0/inputs.pby{{.nope}}z{{"),
            ("{{.inputs.x}} {{}} }} {{{.runName}}", "{{.inputs.x}} {{}} }} {r1"),
            ("ünï {{.runName}}", "ünï r1"),
        ];
        for (text, want) in cases {
            assert_eq!(substitute(text, &Vars(&a)), want, "{text}");
        }
        a.previous_prefix = "s3://b/p/r1/a0/1".to_owned();
        a.raw_data_prefix = "s3://mine/raw/".to_owned();
        a.lease.id.attempt = 2;
        assert_eq!(substitute("{{.prevCheckpointPrefix}}", &Vars(&a)), "s3://b/p/r1/a0/1/_flytecheckpoints");
        assert_eq!(substitute("{{.rawOutputDataPrefix}}", &Vars(&a)), "s3://mine/raw/r1/a0/2");
    }

    #[test]
    fn values_are_not_filled_in_again() {
        let mut a = attempt("r1", "a0", 1);
        a.input_uri = "{{.runName}}".to_owned();
        assert_eq!(substitute("{{.input}}", &Vars(&a)), "{{.runName}}");
    }
}
