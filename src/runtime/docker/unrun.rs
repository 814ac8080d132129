//! Commands that an engine could not run, by what it says of them.
//!
//! The codes of engines do not tell: Docker 20.10 gives 126 to whatever was not run, and Podman 127 also where the
//! directory to start in is missing. So the words of the OCI runtime, which both pass on, are read here and nowhere
//! else.

use super::engine::CallError;
use super::error::explain;
use crate::runtime::{ErrorKind, RuntimeError};

/// How OCI runtimes written in Go begin what they say of the command itself, quoted once more where it was logged.
const OF_THE_COMMAND: [&str; 2] = ["exec: \"", "exec: \\\""];

/// What an OCI runtime says of a command that is not there; a path through what is no directory leads nowhere either.
const MISSING: &[&str] =
    &["executable file not found", "executable file `", "no such file or directory", "not a directory"];

/// Words by which an OCI runtime written in C says that it is the command that it can't execute.
const OF_THE_EXECUTABLE: &[&str] = &["executable file `", "crun: open executable", "crun: exec "];

/// Words about what the caller asked for besides the command: the same request fails again.
const OF_THE_REQUEST: &[&str] = &["chdir to cwd (", "crun: chdir", "unable to find user"];

/// Exit codes of an OCI runtime whose last step, the exec itself, failed: runc 1.1, and later ones.
const FAILED_EXEC: [i32; 2] = [1, 255];

/// Most output that is kept to look whether it tells of a failed exec: the longest path on Linux (PATH_MAX) and some
/// words.
const MOST_SAID: usize = 4096 + 256;

/// The error of a request to run a command that the engine refused, or did not carry out.
pub(super) fn refused(error: CallError, what: &str) -> RuntimeError {
    let (words, status) = (error.words().to_lowercase(), error.status());
    let explained = error.explain_with(what, explain);
    let not_running = status == Some(409) || words.contains("is not running") || words.contains("state improper");
    let kind = match explained.kind {
        _ if not_running => ErrorKind::Rejected,
        ErrorKind::Failed | ErrorKind::Rejected => obstacle(&words).unwrap_or(explained.kind),
        kind => kind,
    };
    RuntimeError::new(kind, explained.message)
}

/// The error of a command that was not run, by what was said instead of its output.
pub(super) fn unrun(what: &str, words: &str) -> RuntimeError {
    let kind = obstacle(&words.to_lowercase()).unwrap_or(ErrorKind::Failed);
    let said =
        if words.is_empty() { "the engine did not run it and does not say why".to_owned() } else { tidied(words) };
    RuntimeError::new(kind, format!("{what}: {said}"))
}

/// Whether this is what Podman says of a command that it did not run, rather than the command's own output.
pub(super) fn says_podman_did_not_run(words: &str) -> bool {
    words.starts_with("Error: ") && words.contains("OCI ")
}

/// What was in the way, by words in lower case; `None` where that was neither the command nor the request.
fn obstacle(words: &str) -> Option<ErrorKind> {
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| words.contains(phrase));
    if says(OF_THE_REQUEST) {
        return Some(ErrorKind::Rejected);
    }
    let of_the_command = says(&OF_THE_COMMAND) || says(OF_THE_EXECUTABLE);
    of_the_command.then(|| if says(MISSING) { ErrorKind::CommandNotFound } else { ErrorKind::CommandNotExecutable })
}

/// What is said of the command, without what engine and OCI runtime put around it.
fn tidied(words: &str) -> String {
    let Some(begin) = OF_THE_COMMAND.iter().filter_map(|mark| words.find(mark)).min() else {
        return words.trim().to_owned();
    };
    let said = words.get(begin..).unwrap_or_default();
    let said = [": unknown", "\": OCI "].iter().filter_map(|end| said.split_once(end)).map(|(said, _)| said).min();
    said.unwrap_or_else(|| words.get(begin..).unwrap_or_default()).replace("\\\"", "\"").trim().to_owned()
}

/// The beginning of a command's output, as far as it may tell of a failed exec.
///
/// An OCI runtime finds out that the kernel takes a file for no program only when it has become the command's process.
/// It writes one line then, and ends.
#[derive(Debug, Default)]
pub(super) struct Said {
    bytes: Vec<u8>,
    is_more: bool,
}

impl Said {
    /// Takes note of further output.
    pub fn push(&mut self, bytes: &[u8]) {
        self.is_more |= self.bytes.len() + bytes.len() > MOST_SAID;
        if !self.is_more {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The error of a program that could not be executed, where this is all that was written and the code is such.
    pub fn failed_exec(&self, program: &str, code: i32, what: &str) -> Option<RuntimeError> {
        let said = std::str::from_utf8(&self.bytes).ok().filter(|_| !self.is_more && FAILED_EXEC.contains(&code))?;
        let (path, reason) = said.trim_end().strip_prefix("exec ")?.rsplit_once(": ")?;
        let same = path == program || path.rsplit_once('/').is_some_and(|(_, name)| name == program);
        let kind = match reason {
            // Of its interpreter: the file itself was found.
            "no such file or directory" => ErrorKind::CommandNotFound,
            "exec format error" | "permission denied" | "text file busy" | "argument list too long" => {
                ErrorKind::CommandNotExecutable
            }
            _ => return None,
        };
        same.then(|| RuntimeError::new(kind, format!("{what}: {path} can't be executed: {reason}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Docker 20.10 and later say, with runc.
    fn docker(reason: &str) -> String {
        format!("OCI runtime exec failed: exec failed: unable to start container process: {reason}: unknown\r\n")
    }

    /// What Podman 4 says, with runc.
    fn podman(reason: &str, end: &str) -> String {
        let quoted = reason.replace('"', "\\\"");
        format!(
            "Error: runc: time=\"2026-01-01T00:00:00Z\" level=error msg=\"exec failed: unable to start container \
             process: {quoted}\": OCI {end}\n"
        )
    }

    #[test]
    fn a_missing_command_is_told_from_one_that_can_not_be_executed() {
        let missing = "runtime attempted to invoke a command that was not found";
        let table = [
            (r#"exec: "nope": executable file not found in $PATH"#, missing, ErrorKind::CommandNotFound),
            (r#"exec: "/x": stat /x: no such file or directory"#, missing, ErrorKind::CommandNotFound),
            (r#"exec: "/a/x": stat /a/x: not a directory"#, "runtime error", ErrorKind::CommandNotFound),
            (r#"exec: "/x": permission denied"#, "permission denied", ErrorKind::CommandNotExecutable),
            (r#"exec: "/x": is a directory"#, "runtime error", ErrorKind::CommandNotExecutable),
            (
                r#"chdir to cwd ("/x") set in config.json failed: no such file or directory"#,
                missing,
                ErrorKind::Rejected,
            ),
            ("write /sys/fs/cgroup/x: permission denied", "permission denied", ErrorKind::Failed),
        ];
        for (reason, end, kind) in table {
            assert_eq!(unrun("x", &docker(reason)).kind, kind, "{reason}");
            assert_eq!(unrun("x", &podman(reason, end)).kind, kind, "{reason}");
            assert!(says_podman_did_not_run(&podman(reason, end)));
        }
    }

    #[test]
    fn crun_is_understood_too() {
        let kind = |words: &str| unrun("x", words).kind;
        let missing = "Error: crun: executable file `nope` not found in $PATH: No such file or directory: OCI runtime \
                       attempted to invoke a command that was not found";
        assert_eq!(kind(missing), ErrorKind::CommandNotFound);
        let plain = "Error: crun: open executable: Permission denied: OCI permission denied";
        assert_eq!(kind(plain), ErrorKind::CommandNotExecutable);
        let chdir = "Error: crun: chdir: No such file or directory: OCI runtime attempted to invoke a command that was \
                     not found";
        assert_eq!(kind(chdir), ErrorKind::Rejected);
        let machine = "Error: crun: write to `/sys/fs/cgroup/x`: Permission denied: OCI permission denied";
        assert_eq!(kind(machine), ErrorKind::Failed);
    }

    #[test]
    fn what_is_said_of_the_command_is_passed_on_alone() {
        let reason = r#"exec: "/x": stat /x: no such file or directory"#;
        let want = format!("running a command in a/b/0: {reason}");
        assert_eq!(unrun("running a command in a/b/0", &docker(reason)).message, want);
        assert_eq!(unrun("running a command in a/b/0", &podman(reason, "runtime error")).message, want);
        assert_eq!(unrun("x", " something else\r\n").message, "x: something else");
    }

    fn failed_exec(said: &[&str], program: &str, code: i32) -> Option<ErrorKind> {
        let mut all = Said::default();
        said.iter().for_each(|said| all.push(said.as_bytes()));
        all.failed_exec(program, code, "x").map(|error| error.kind)
    }

    #[test]
    fn a_file_that_is_no_program_is_known_by_the_one_line_that_is_written_instead() {
        let line = ["exec /tmp/x: exec ", "format error\n"];
        assert_eq!(failed_exec(&line, "/tmp/x", 1), Some(ErrorKind::CommandNotExecutable));
        assert_eq!(failed_exec(&line, "x", 255), Some(ErrorKind::CommandNotExecutable));
        let interpreter = ["exec /tmp/x: no such file or directory\r\n"];
        assert_eq!(failed_exec(&interpreter, "/tmp/x", 1), Some(ErrorKind::CommandNotFound));
    }

    #[test]
    fn what_a_command_writes_itself_is_its_own() {
        let line = "exec /tmp/x: exec format error\n";
        assert_eq!(failed_exec(&[line], "/tmp/x", 3), None, "another code");
        assert_eq!(failed_exec(&[line], "sh", 1), None, "another program");
        assert_eq!(failed_exec(&["hello\n", line], "/tmp/x", 1), None, "not the only line");
        assert_eq!(failed_exec(&[&"x".repeat(MOST_SAID), line], "/tmp/x", 1), None, "too much");
        assert_eq!(failed_exec(&[], "/tmp/x", 1), None, "nothing");
    }
}
