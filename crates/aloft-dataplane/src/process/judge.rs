//! How an attempt ended, from what it left behind (contract, section 5.3).

use aloft_core::{AttemptOutcome, ErrorKind, OutputRefs, TaskError};
use aloft_flyteidl2::flyteidl2::core::{ContainerError, ErrorDocument, container_error, execution_error};
use aloft_plane::PlaneError;
use buffa::Message;

use super::dir::{Exit, ExitRecord};
use crate::seam::ResultStore;

/// Longest `error.pb` that is read. Only the first 4 KiB of a message are kept, but the fields after it count too.
const MAX_ERROR: usize = 1024 * 1024;

/// What an attempt left in the object store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// `error.pb`, or why it cannot be read.
    pub error: Option<Result<ContainerError, String>>,
    /// Whether `outputs.pb` exists.
    pub outputs: bool,
    /// The HTML report, if there is one.
    pub report_uri: String,
}

impl Results {
    /// Looks at what lies below `output_prefix`.
    ///
    /// # Errors
    /// If the object store does not answer: then nothing can be said yet.
    pub async fn read(store: &dyn ResultStore, output_prefix: &str) -> Result<Self, PlaneError> {
        let at = |name: &str| format!("{}/{name}", output_prefix.trim_end_matches('/'));
        let (error_uri, outputs_uri, report_uri) = (at("error.pb"), at("outputs.pb"), at("report.html"));
        let (error, outputs, report) = futures::try_join!(
            store.get(&error_uri, MAX_ERROR),
            store.exists(&outputs_uri),
            store.exists(&report_uri)
        )?;
        let error = error.map(|bytes| {
            ErrorDocument::decode_from_slice(&bytes)
                .map_err(|e| e.to_string())
                .map(|document| document.error.into_option().unwrap_or_default())
        });
        Ok(Self { error, outputs, report_uri: if report { report_uri } else { String::new() } })
    }

    /// Whether an attempt has said, durably, how it ended. Cheaper than [`Results::read`].
    ///
    /// # Errors
    /// If the object store does not answer: then nothing can be said yet.
    pub async fn are_there(store: &dyn ResultStore, output_prefix: &str) -> Result<bool, PlaneError> {
        let at = |name: &str| format!("{}/{name}", output_prefix.trim_end_matches('/'));
        let (error_uri, outputs_uri) = (at("error.pb"), at("outputs.pb"));
        let (error, outputs) = futures::try_join!(store.exists(&error_uri), store.exists(&outputs_uri))?;
        Ok(error || outputs)
    }

    /// Whether the attempt said, durably, how it ended. What happened to its process then does not matter.
    pub fn are_final(&self) -> bool {
        self.outputs || self.error.is_some()
    }
}

/// How the attempt with outputs below `output_prefix` ended.
///
/// `error.pb` is looked at first: the SDK exits with code 0 when user code fails, and a task can fail after it has written
/// its outputs. A result that was written stands even if the process was killed afterwards.
pub fn judge(results: Results, exit: &ExitRecord, output_prefix: &str) -> AttemptOutcome {
    let report = |uri: &str| OutputRefs { output_uri: String::new(), report_uri: uri.to_owned() };
    match results.error {
        Some(Ok(error)) => return from_document(error, &exit.how, report(&results.report_uri)),
        Some(Err(why)) => {
            let message = format!(
                "The task failed, but its error document {output_prefix}/error.pb cannot be read ({why}). \
                 Its log tells more."
            );
            let error = TaskError::new("MalformedErrorDocument", message, ErrorKind::System, true);
            return AttemptOutcome::Failed(error, report(&results.report_uri));
        }
        None => {}
    }
    if results.outputs && !matches!(exit.how, Exit::Code(code) if code != 0) {
        return AttemptOutcome::Succeeded(OutputRefs {
            output_uri: output_prefix.to_owned(),
            report_uri: results.report_uri,
        });
    }
    match exit.how {
        Exit::Code(0) => {
            let message = format!(
                "The process ended with code 0 but wrote neither outputs.pb nor error.pb below {output_prefix}. \
                 Code that calls os._exit, or replaces the process, ends before the SDK can write them."
            );
            AttemptOutcome::Failed(
                TaskError::new("OutputsMissing", message, ErrorKind::System, true),
                report(&results.report_uri),
            )
        }
        _ => from_exit(exit, report(&results.report_uri)),
    }
}

fn from_document(error: ContainerError, how: &Exit, outputs: OutputRefs) -> AttemptOutcome {
    let mut error = task_error(error);
    if *how == Exit::Code(1) {
        error =
            TaskError::new(error.code.as_str(), not_loaded(&error.code, &error.message), error.kind, error.recoverable);
    }
    AttemptOutcome::Failed(error, outputs)
}

/// What an error document says.
pub fn task_error(error: ContainerError) -> TaskError {
    let kind = match error.origin.as_known() {
        Some(execution_error::ErrorKind::SYSTEM) => ErrorKind::System,
        Some(execution_error::ErrorKind::USER) => ErrorKind::User,
        _ => ErrorKind::Unknown,
    };
    let recoverable = error.kind == container_error::Kind::RECOVERABLE;
    let code = if error.code.is_empty() { "Unknown".to_owned() } else { error.code };
    TaskError::new(code, error.message, kind, recoverable)
}

/// What is said of a task that never ran. The SDK ends with code 0 when the user's code fails, and with 1 when that code
/// could not be loaded, after writing the same document.
fn not_loaded(code: &str, message: &str) -> String {
    let remedy = match code {
        "ModuleNotFoundError" | "ImportError" => {
            "Add what is missing to its image (with_pip_packages), or to its code bundle (copy_style, root_dir)."
        }
        "FileNotFoundError" | "NotFoundError" => {
            "If its code bundle was removed, `flyte delete local-cache` makes the client upload it again."
        }
        _ => "Its log tells more.",
    };
    format!("The task never ran: its code could not be loaded. {remedy}\n{}", message.trim_start_matches('\n'))
}

/// An attempt whose process ended without a result.
fn from_exit(exit: &ExitRecord, outputs: OutputRefs) -> AttemptOutcome {
    let user = |code: &str, message: String| {
        AttemptOutcome::Failed(TaskError::new(code, message, ErrorKind::User, true), outputs.clone())
    };
    match &exit.how {
        Exit::Code(137) | Exit::Signal(9) if exit.oom => user(
            "OOMKilled",
            "The process was killed while the machine ran out of memory. Ask for more memory for this task \
             (resources), or run less beside it."
                .to_owned(),
        ),
        Exit::Signal(9) => user(
            "Killed",
            "The process was killed by signal 9 (SIGKILL). The system kills so when memory runs out; it does not say \
             that it did here."
                .to_owned(),
        ),
        Exit::Signal(signal) => {
            let name = nix::sys::signal::Signal::try_from(*signal).map_or("unknown", |s| s.as_str());
            user(
                "Crashed",
                format!(
                    "The process was ended by signal {signal} ({name}) before it wrote a result. The end of its log may \
                     say why."
                ),
            )
        }
        Exit::Code(code) => user(
            "NonZeroExit",
            format!("The process ended with code {code} before it wrote a result. The end of its log says why."),
        ),
        Exit::NotStarted(why) => {
            AttemptOutcome::Lost(TaskError::new("NotStarted", why.clone(), ErrorKind::System, true))
        }
        Exit::Unknown => AttemptOutcome::Lost(TaskError::new(
            "ProcessLost",
            "The process ended while nobody could see how, and left no result: the machine or Aloft was stopped, or \
             somebody killed both the task and its keeper.",
            ErrorKind::System,
            true,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(how: Exit) -> ExitRecord {
        ExitRecord { how, started_us: 1, ended_us: 2, oom: false }
    }

    fn document(
        code: &str,
        recoverable: bool,
        origin: execution_error::ErrorKind,
    ) -> Option<Result<ContainerError, String>> {
        let kind =
            if recoverable { container_error::Kind::RECOVERABLE } else { container_error::Kind::NON_RECOVERABLE };
        Some(Ok(ContainerError {
            code: code.to_owned(),
            message: "text".to_owned(),
            kind: kind.into(),
            origin: origin.into(),
            ..ContainerError::default()
        }))
    }

    fn describe(outcome: AttemptOutcome) -> String {
        match outcome {
            AttemptOutcome::Succeeded(refs) => format!("ok {} {}", refs.output_uri, refs.report_uri),
            AttemptOutcome::Failed(e, refs) => {
                assert!(refs.output_uri.is_empty());
                format!("failed {} {:?} {}", e.code, e.kind, e.recoverable)
            }
            AttemptOutcome::Lost(e) => format!("lost {} {:?} {}", e.code, e.kind, e.recoverable),
        }
    }

    #[test]
    fn what_was_written_decides_and_then_how_it_exited() {
        use execution_error::ErrorKind as Origin;
        let none = || None;
        let table = [
            (document("ValueError", true, Origin::USER), false, Exit::Code(0), "failed ValueError User true"),
            (document("A|B", false, Origin::SYSTEM), true, Exit::Code(1), "failed A|B System false"),
            (document("", true, Origin::UNKNOWN), false, Exit::Signal(9), "failed Unknown Unknown true"),
            (Some(Err("cut".to_owned())), true, Exit::Code(0), "failed MalformedErrorDocument System true"),
            (none(), true, Exit::Code(0), "ok s3://b/o r"),
            (none(), true, Exit::Unknown, "ok s3://b/o r"),
            (none(), true, Exit::Signal(15), "ok s3://b/o r"),
            (none(), true, Exit::Code(1), "failed NonZeroExit User true"),
            (none(), false, Exit::Code(0), "failed OutputsMissing System true"),
            (none(), false, Exit::Code(3), "failed NonZeroExit User true"),
            (none(), false, Exit::Signal(11), "failed Crashed User true"),
            (none(), false, Exit::Signal(9), "failed Killed User true"),
            (none(), false, Exit::Unknown, "lost ProcessLost System true"),
            (none(), false, Exit::NotStarted("x".to_owned()), "lost NotStarted System true"),
        ];
        for (error, outputs, how, want) in table {
            let results = Results { error, outputs, report_uri: "r".to_owned() };
            let case = format!("{results:?} {how:?}");
            assert_eq!(describe(judge(results, &exit(how), "s3://b/o")), want, "{case}");
        }
    }

    #[test]
    fn a_task_that_never_ran_is_told_from_one_that_failed() {
        let judged = |code: &str, how: Exit| {
            let error = document(code, true, execution_error::ErrorKind::UNKNOWN);
            match judge(Results { error, ..Results::default() }, &exit(how), "o") {
                AttemptOutcome::Failed(error, _) => (error.code, error.message),
                other => panic!("{other:?}"),
            }
        };
        let (code, message) = judged("ModuleNotFoundError", Exit::Code(1));
        assert_eq!(code, "ModuleNotFoundError");
        assert!(message.starts_with("The task never ran") && message.ends_with("text"), "{message}");
        assert!(message.contains("with_pip_packages"), "{message}");
        assert!(judged("FileNotFoundError", Exit::Code(1)).1.contains("local-cache"));
        // Raised by the task's own function.
        assert_eq!(judged("ModuleNotFoundError", Exit::Code(0)).1, "text");
        assert_eq!(judged("ModuleNotFoundError", Exit::Signal(9)).1, "text");
    }

    #[test]
    fn want_of_memory_is_named_only_when_the_system_says_so() {
        for how in [Exit::Signal(9), Exit::Code(137)] {
            let record = ExitRecord { oom: true, ..exit(how) };
            assert_eq!(describe(judge(Results::default(), &record, "o")), "failed OOMKilled User true");
        }
    }
}
