//! What the engine answers, as errors that the controller tells apart.

use bollard::errors::Error;
use rustix::io::Errno;

use crate::runtime::{ErrorKind, RuntimeError};

/// Words by which an engine says that the spec names something that the image does not have: the same request fails
/// again. Docker gives 400 for most of them; Podman gives 500 for all and repeats what its OCI runtime said.
const UNRUNNABLE: &[&str] = &[
    "executable file not found",
    "executable file `",
    "oci runtime attempted to invoke a command that was not found",
    "no command or entrypoint provided",
    "no command specified",
    "unable to find user",
    "chdir to cwd (",
    "invalid mount config",
];

/// Words that mean the spec's command only where the OCI runtime says them of that: of a control group or a device they
/// are the machine's matter, which may pass.
const UNRUNNABLE_COMMAND: &[&str] =
    &["no such file or directory", "permission denied", "not a directory", "is a directory", "exec format error"];

/// How OCI runtimes written in Go begin what they say of the command.
const OF_THE_COMMAND: &str = "exec: \"";

/// What Docker says, with 400, of a bind whose source is missing: somebody may make it.
const MISSING_SOURCE: &str = "bind source path does not exist";

/// HTTP status of an engine's answer, where it answered.
pub(super) const fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Whether the engine answered that what was asked for does not exist.
pub(super) const fn is_missing(error: &Error) -> bool {
    matches!(status(error), Some(404))
}

/// The engine's own words.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        other => with_causes(other),
    }
}

/// An error and what caused it, in one line; hyper keeps the interesting part in the causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Whether this process or the machine has no file descriptor left, which says nothing of the engine.
fn lacks_descriptors(error: &Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let own = match error {
        Error::IOError { err } => err.raw_os_error(),
        _ => None,
    };
    let of_causes = causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
    own.into_iter()
        .chain(of_causes)
        .any(|code| [Errno::MFILE, Errno::NFILE].iter().any(|errno| errno.raw_os_error() == code))
}

/// The kind of a failed call whose 404 means that the instance is gone.
pub(super) fn kind(error: &Error) -> ErrorKind {
    match error {
        Error::DockerResponseServerError { status_code, .. } => match status_code {
            404 => ErrorKind::NotFound,
            400 | 403 | 405 | 501 => ErrorKind::Rejected,
            _ => ErrorKind::Failed,
        },
        Error::RequestTimeoutError => ErrorKind::Timeout,
        error if lacks_descriptors(error) => ErrorKind::Failed,
        Error::SocketNotFoundError(_)
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. }
        | Error::IOError { .. } => ErrorKind::Unavailable,
        Error::UnsupportedURISchemeError { .. } => ErrorKind::Unsupported,
        _ => ErrorKind::Failed,
    }
}

/// The error of a call; `what` says what was being done, as in `starting web/api/0`.
pub(super) fn explain(what: &str, error: &Error) -> RuntimeError {
    let words = words(error);
    match kind(error) {
        ErrorKind::Unavailable => RuntimeError::new(
            ErrorKind::Unavailable,
            format!("{what}: the container engine can't be reached: {words}; check that Docker or Podman runs"),
        ),
        ErrorKind::Timeout => RuntimeError::new(ErrorKind::Timeout, format!("{what}: the engine does not answer")),
        kind => RuntimeError::new(kind, format!("{what}: {words}")),
    }
}

/// The error of a create or a start: what the spec can't have is refused for good; a full port, a missing directory or
/// trouble of the machine may pass.
pub(super) fn explain_start(what: &str, error: &Error) -> RuntimeError {
    let mut explained = explain(what, error);
    if matches!(explained.kind, ErrorKind::Failed | ErrorKind::Rejected) {
        explained.kind = start_kind(explained.kind, &words(error).to_lowercase());
    }
    explained
}

/// The kind of a failed start by the engine's words, in lower case, and by its status where they say nothing.
fn start_kind(by_status: ErrorKind, words: &str) -> ErrorKind {
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| words.contains(phrase));
    if words.contains(MISSING_SOURCE) {
        ErrorKind::Failed
    } else if says(UNRUNNABLE) || (words.contains(OF_THE_COMMAND) && says(UNRUNNABLE_COMMAND)) {
        ErrorKind::Rejected
    } else if words.contains("oci runtime") {
        // Docker gives 400 to whatever its OCI runtime is denied, also when the machine denies it.
        ErrorKind::Failed
    } else {
        by_status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn an_unreachable_engine_is_never_a_missing_instance() {
        let refused = Error::IOError { err: std::io::Error::from(std::io::ErrorKind::ConnectionRefused) };
        assert_eq!(kind(&refused), ErrorKind::Unavailable);
        assert_eq!(kind(&Error::RequestTimeoutError), ErrorKind::Timeout);
        assert_eq!(kind(&Error::SocketNotFoundError("/x".to_owned())), ErrorKind::Unavailable);
        assert_eq!(kind(&answer(404, "No such container: x")), ErrorKind::NotFound);
        assert_eq!(kind(&answer(500, "boom")), ErrorKind::Failed);
    }

    #[test]
    fn a_command_that_cannot_be_run_is_refused_on_both_engines() {
        let docker = answer(400, "exec: \"nope\": executable file not found in $PATH: unknown");
        let podman =
            answer(500, "runc: exec: \"nope\": executable file not found in $PATH: OCI runtime attempted to invoke");
        assert_eq!(explain_start("starting a/b/0", &docker).kind, ErrorKind::Rejected);
        assert_eq!(explain_start("starting a/b/0", &podman).kind, ErrorKind::Rejected);
        let file = answer(500, "runc: exec: \"/etc/passwd\": permission denied: OCI permission denied");
        assert_eq!(explain_start("starting a/b/0", &file).kind, ErrorKind::Rejected);
        let parameter = answer(400, "invalid CPU count");
        assert_eq!(explain_start("creating a/b/0", &parameter).kind, ErrorKind::Rejected);
    }

    #[test]
    fn trouble_of_the_machine_may_pass() {
        let table = [
            (500, "Bind for 127.0.0.1:80 failed: port is already allocated"),
            (400, "OCI runtime create failed: mkdir /sys/fs/cgroup/memory/docker: permission denied: unknown"),
            (500, "OCI runtime error: runc: write /proc/self/oom_score_adj: operation not permitted"),
            (500, "failed to mount overlay: invalid argument"),
            (500, "error gathering device information: stat /dev/fuse: no such file or directory"),
            (400, "invalid mount config for type \"bind\": bind source path does not exist: /srv/data"),
        ];
        for (status, words) in table {
            let explained = explain_start("starting a/b/0", &answer(status, words));
            assert_eq!((explained.kind, explained.retryable()), (ErrorKind::Failed, true), "{words}");
            assert!(explained.message.contains(words));
        }
    }

    #[test]
    fn the_engines_words_are_passed_on() {
        let error = explain("starting a/b/0", &answer(500, "port is already allocated"));
        assert_eq!(error.message, "starting a/b/0: port is already allocated");
    }
}
