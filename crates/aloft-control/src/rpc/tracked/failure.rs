//! Why an attempt failed where it runs, as its reporter words it.

use aloft_core::{ErrorKind, TaskError};
use aloft_flyteidl2::flyteidl2::workflow::{ErrorInfo, error_info};

/// The code of a failure that has none.
const UNNAMED: &str = "TaskFailed";

/// Longest code that is kept, in characters: the name of an exception.
const MAX_CODE: usize = 255;

/// The failure that a report tells of. It may be tried again unless it says that it must not be.
pub(super) fn read(info: Option<&ErrorInfo>) -> TaskError {
    let Some(info) = info else {
        return TaskError::new(UNNAMED, "it failed, and its reporter did not say why", ErrorKind::Unknown, true);
    };
    let kind = match info.kind.as_known() {
        Some(error_info::Kind::KIND_USER) => ErrorKind::User,
        Some(error_info::Kind::KIND_SYSTEM) => ErrorKind::System,
        Some(error_info::Kind::KIND_UNSPECIFIED) | None => ErrorKind::Unknown,
    };
    let printed = printed(&info.message).unwrap_or_default();
    let code = [info.code.as_str(), &printed.code].into_iter().find(|c| !c.is_empty()).unwrap_or(UNNAMED);
    let message = printed.message.as_deref().unwrap_or(&info.message);
    let code: String = code.chars().take(MAX_CODE).collect();
    TaskError::new(code, message, printed.kind.unwrap_or(kind), !printed.is_final)
}

/// An error of the SDK, as Python prints it.
#[derive(Debug, Default, PartialEq)]
struct Printed {
    code: String,
    message: Option<String>,
    kind: Option<ErrorKind>,
    is_final: bool,
}

/// Reads `Error(err=<the text form of a core.ExecutionError>, recoverable=<bool>)`: the SDK reports failed tasks so. `None`
/// for any other text, which then stands for itself.
fn printed(text: &str) -> Option<Printed> {
    let inner = text.strip_prefix("Error(err=")?;
    let (fields, is_final) = match inner.strip_suffix(", recoverable=True)") {
        Some(fields) => (fields, false),
        None => (inner.strip_suffix(", recoverable=False)")?, true),
    };
    let mut printed = Printed { is_final, ..Printed::default() };
    for line in fields.lines() {
        match line.trim().split_once(": ") {
            Some(("code", value)) => printed.code = unquoted(value)?,
            Some(("message", value)) => printed.message = Some(unquoted(value)?),
            Some(("kind", "USER")) => printed.kind = Some(ErrorKind::User),
            Some(("kind", "SYSTEM")) => printed.kind = Some(ErrorKind::System),
            // What else there is says nothing to people.
            _ => {}
        }
    }
    (!printed.code.is_empty() || printed.message.is_some()).then_some(printed)
}

/// A string of the text form, with its escapes undone.
fn unquoted(value: &str) -> Option<String> {
    let mut bytes = value.strip_prefix('"')?.strip_suffix('"')?.bytes().peekable();
    let mut out = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next()? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            first @ b'0'..=b'7' => {
                let mut code = u32::from(first - b'0');
                for _ in 0..2 {
                    match bytes.next_if(|b| (b'0'..=b'7').contains(b)) {
                        Some(digit) => code = code * 8 + u32::from(digit - b'0'),
                        None => break,
                    }
                }
                u8::try_from(code).ok()?
            }
            other => other,
        });
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(message: &str) -> ErrorInfo {
        ErrorInfo { message: message.into(), kind: error_info::Kind::KIND_USER.into(), ..Default::default() }
    }

    #[test]
    fn the_sdks_errors_are_read_as_what_they_say() {
        // As SDK 2.12.1 prints them.
        let error = read(Some(&user(
            "Error(err=code: \"ValueError\"\nmessage: \"bad\\nthing\"\nworker: \"UNKNOWN\"\n, recoverable=True)",
        )));
        assert_eq!(error, TaskError::new("ValueError", "bad\nthing", ErrorKind::User, true));
        let text = "Error(err=code: \"NonRecoverableError\"\nmessage: \"no \\\'use\\\' \\303\\244 \\\"x\\\"\"\nkind: SYSTEM\n, recoverable=False)";
        let error = read(Some(&user(text)));
        assert_eq!(error, TaskError::new("NonRecoverableError", "no 'use' ä \"x\"", ErrorKind::System, false));
    }

    #[test]
    fn other_texts_stand_for_themselves() {
        for text in ["division by zero", "", "Error(err=, recoverable=True)", "Error(err=code: 5, recoverable=True)"] {
            let error = read(Some(&user(text)));
            assert_eq!(error, TaskError::new("TaskFailed", text, ErrorKind::User, true), "{text}");
        }
        for broken in ["\"", "\"\\", "\"\\\"", "\"\\777\"", "x"] {
            assert_eq!(printed(&format!("Error(err=message: {broken}\n, recoverable=False)")), None, "{broken}");
        }
        assert_eq!(read(None).code, "TaskFailed");
        let coded = ErrorInfo { code: "Mine".into(), ..user("x") };
        assert_eq!(read(Some(&coded)).code, "Mine");
    }
}
