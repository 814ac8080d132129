//! How far an engine is with a command inside a container.

use std::time::Duration;

use bollard::models::ExecInspectResponse;

use crate::runtime::Result;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has neither a process nor an end: the engine starts it now, or may start it yet.
    Unstarted,
    /// It runs as this process.
    Running(i32),
    /// It ended, or could not be run.
    Ended {
        /// How.
        code: i64,
        /// Whether the engine remembers a process of it.
        had_process: bool,
    },
}

impl Stage {
    pub(super) fn of(state: &ExecInspectResponse) -> Self {
        let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let had_process = pid.is_some();
        match (state.running, state.exit_code, pid) {
            // Podman gives a command that was not started yet the code 0, and says of one that ended that it can be removed.
            (Some(false), Some(0), None) if state.can_remove != Some(true) => Self::Unstarted,
            (Some(false), Some(code), _) => Self::Ended { code, had_process },
            (_, _, Some(pid)) => Self::Running(pid),
            (_, _, None) => Self::Unstarted,
        }
    }
}

/// Looks until there is something to tell, so many times at most, with a pause after each.
///
/// # Errors
/// The first of a look.
pub(super) async fn until_told<T, F: Future<Output = Result<Option<T>>>>(
    looks: usize,
    pause: Duration,
    mut look: impl FnMut() -> F,
) -> Result<Option<T>> {
    for _ in 0..looks {
        let told = look().await?;
        if told.is_some() {
            return Ok(told);
        }
        tokio::time::sleep(pause).await;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(running: bool, exit_code: Option<i64>, pid: i64, can_remove: bool) -> Stage {
        let (running, pid, can_remove) = (Some(running), Some(pid), Some(can_remove));
        Stage::of(&ExecInspectResponse { running, exit_code, pid, can_remove, ..ExecInspectResponse::default() })
    }

    #[test]
    fn a_command_has_ended_only_once_the_engine_says_how() {
        // Docker: made, being started, running, ended, could not be run.
        assert_eq!(stage(false, None, 0, false), Stage::Unstarted);
        assert_eq!(stage(true, None, 0, false), Stage::Unstarted);
        assert_eq!(stage(true, None, 7, false), Stage::Running(7));
        assert_eq!(stage(false, Some(0), 7, false), Stage::Ended { code: 0, had_process: true });
        assert_eq!(stage(false, Some(126), 0, false), Stage::Ended { code: 126, had_process: false });
        // Podman: made, running, ended, could not be run.
        assert_eq!(stage(false, Some(0), 0, false), Stage::Unstarted);
        assert_eq!(stage(true, Some(0), 7, false), Stage::Running(7));
        assert_eq!(stage(false, Some(0), 0, true), Stage::Ended { code: 0, had_process: false });
        assert_eq!(stage(false, Some(127), 0, true), Stage::Ended { code: 127, had_process: false });
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_late_is_waited_for_and_not_for_ever() {
        let (mut looks, begin) = (0, tokio::time::Instant::now());
        let mut third = || {
            looks += 1;
            std::future::ready(Ok((looks == 3).then_some("running")))
        };
        let pause = Duration::from_secs(1);
        assert_eq!(until_told(2, pause, &mut third).await.unwrap(), None);
        let told = until_told(2, pause, third).await.unwrap();
        assert_eq!((told, begin.elapsed()), (Some("running"), pause * 2));
    }
}
