//! Kills for want of memory under control groups of version 1. There the kernel kills one process and lets the others go
//! on; version 2 ends an instance as a whole (`memory.oom.group`), and so does the supervisor for version 1.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::facts::oom_kills;
use super::groups::Groups;
use super::hierarchy::Controller;

/// Time between two looks at the counter after the kernel told that memory is short: it tells before it kills.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Longest time that the counter is looked at then. Most shortages end without a kill.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// Time between two looks where the kernel does not tell.
const SLOW_INTERVAL: Duration = super::MEMORY_WATCH_INTERVAL;

/// Watches for kills in a group of version 1 that limits memory.
#[derive(Debug)]
pub struct Starvation {
    groups: Groups,
    /// Told by the kernel when memory is short; absent where it can't be.
    told: Option<OwnedFd>,
    /// When the counter is looked at next, and until when.
    look: Option<(Instant, Instant)>,
}

impl Starvation {
    /// A watch over groups that exist; none where version 2 or nobody limits memory, or where the spec has nothing killed.
    pub fn watch(groups: &Groups) -> Option<Self> {
        let group = groups.legacy(Controller::Memory).filter(|_| groups.unified(Controller::Memory).is_none())?;
        let has = |file: &str, value: Option<&str>| {
            group.settings.iter().any(|one| one.file == file && value.is_none_or(|value| one.value == value))
        };
        if !has("memory.limit_in_bytes", None) || has("memory.oom_control", Some("1")) {
            return None;
        }
        let told = notices(&group.dir).ok();
        Some(Self { groups: groups.clone(), look: told.is_none().then(|| far(Instant::now())), told })
    }

    /// What becomes readable when memory is short.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.told.as_ref().map(AsFd::as_fd)
    }

    /// When it wants to look next.
    pub fn due(&self) -> Option<Instant> {
        self.look.map(|(next, _)| next)
    }

    /// Looks, where there is a reason to, and says whether something was killed in this run.
    pub fn has_killed(&mut self, now: Instant) -> bool {
        let mut count = [0; 8];
        let is_told = self.told.as_ref().is_some_and(|told| rustix::io::read(told, &mut count).is_ok());
        match self.look {
            _ if is_told => self.look = Some((now + LOOK_INTERVAL, now + LOOK_LIMIT)),
            Some((next, _)) if now < next => return false,
            Some(_) if self.told.is_none() => self.look = Some(far(now)),
            Some((_, end)) => self.look = (now < end).then_some((now + LOOK_INTERVAL, end)),
            None => return false,
        }
        oom_kills(&self.groups) > 0
    }
}

/// The next look, without an end, where the kernel does not tell.
fn far(now: Instant) -> (Instant, Instant) {
    (now + SLOW_INTERVAL, now)
}

/// Has the kernel tell when memory is short (memory.txt of cgroup-v1, "Memory thresholds" and "OOM Control").
fn notices(dir: &Path) -> io::Result<OwnedFd> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = File::open(dir.join("memory.oom_control"))?;
    let mut file =
        OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(dir.join("cgroup.event_control"))?;
    file.write_all(format!("{} {}", event.as_raw_fd(), control.as_raw_fd()).as_bytes())?;
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::super::groups::{Legacy, Setting};
    use super::*;

    fn groups(dir: &Path, settings: &[(&str, &str)]) -> Groups {
        let setting = |(file, value): &(&str, &str)| Setting {
            file: (*file).to_owned(),
            value: (*value).to_owned(),
            field: "resources.x".to_owned(),
        };
        let settings = settings.iter().map(setting).collect();
        let group = Legacy { dir: dir.to_owned(), controllers: vec![Controller::Memory], settings };
        Groups { unified: None, legacy: vec![group] }
    }

    #[test]
    fn without_word_from_the_kernel_the_counter_is_looked_at_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let count = |kills: u32| {
            std::fs::write(folder.path().join("memory.oom_control"), format!("under_oom 0\noom_kill {kills}\n"))
                .unwrap();
        };
        count(0);
        let mut watch = Starvation::watch(&groups(folder.path(), &[("memory.limit_in_bytes", "1")])).unwrap();
        let first = watch.due().unwrap();
        count(1);
        assert!(!watch.has_killed(first - Duration::from_millis(1)));
        assert!(watch.has_killed(first));
        assert_eq!(watch.due(), Some(first + SLOW_INTERVAL));
        count(0);
        assert!(!watch.has_killed(first + SLOW_INTERVAL));
    }

    #[test]
    fn after_word_from_the_kernel_the_counter_is_looked_at_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("memory.oom_control"), "oom_kill 0\n").unwrap();
        let told = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let groups = groups(folder.path(), &[("memory.limit_in_bytes", "1")]);
        let mut watch = Starvation { groups, told: Some(told), look: None };
        let now = Instant::now();
        assert!(!watch.has_killed(now));
        assert_eq!(watch.due(), None, "nothing is looked at without a reason");
        rustix::io::write(watch.told.as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
        assert!(!watch.has_killed(now));
        assert_eq!(watch.due(), Some(now + LOOK_INTERVAL));
        std::fs::write(folder.path().join("memory.oom_control"), "oom_kill 1\n").unwrap();
        assert!(watch.has_killed(now + LOOK_INTERVAL));
        assert!(watch.has_killed(now + LOOK_LIMIT));
        assert_eq!(watch.due(), None, "it is looked at for no longer");
    }

    #[test]
    fn a_group_that_limits_nothing_or_kills_nothing_is_not_watched() {
        let dir = Path::new("/nowhere");
        assert!(Starvation::watch(&groups(dir, &[])).is_none());
        let kept = [("memory.limit_in_bytes", "1"), ("memory.oom_control", "1")];
        assert!(Starvation::watch(&groups(dir, &kept)).is_none());
        assert!(Starvation::watch(&groups(dir, &kept[..1])).is_some());
        assert!(Starvation::watch(&Groups::default()).is_none());
    }
}
