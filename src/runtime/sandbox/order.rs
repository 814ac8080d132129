//! What the controller tells the helper that runs a command, and by what it answers: a file and a named pipe in the
//! instance's directory. The controller has the pipe open for as long as it wants the command to run.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use serde::{Deserialize, Serialize};

use super::fresh::unique;
use super::layout::{Durability, InstanceDir, make_private, read_json, write_json};
use super::pty::Size;

/// Age from which an order was left by a controller that is gone: twice the longest time that a command takes to start.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    /// Directory to start in; the instance's when absent.
    pub workdir: Option<String>,
    /// Size of the terminal that it gets, if any. Standard input is then the socket by which the controller takes the
    /// terminal over.
    pub tty: Option<Size>,
}

/// Where an order lies.
#[derive(Debug)]
pub struct Place {
    /// Directory of the instance.
    pub dir: InstanceDir,
    /// Name of the order, which no other has.
    pub name: String,
}

impl Place {
    /// Places an order, and removes those that nobody will carry out.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn new(dir: InstanceDir, order: &Order) -> io::Result<Self> {
        let place = Self { name: unique("exec")?, dir };
        make_private(&place.dir.exec())?;
        sweep(&place.dir.exec());
        let made = write_json(&place.order(), order, Durability::Boot)
            .and_then(|()| Ok(mknodat(CWD, place.pipe(), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?));
        if made.is_err() {
            place.discard();
        }
        made.map(|()| place)
    }

    /// The pipe that the helper answers through.
    pub fn pipe(&self) -> PathBuf {
        self.dir.exec().join(&self.name)
    }

    fn order(&self) -> PathBuf {
        self.dir.exec().join(format!("{}.json", self.name))
    }

    /// Opens the helper's end of the pipe, which never blocks.
    ///
    /// # Errors
    /// `ENXIO` where the controller is gone; `NotFound` where it gave the order up.
    pub fn answer(&self) -> io::Result<File> {
        // Without a reader a blocking open would wait for one for ever (fifo(7)).
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(open(self.pipe(), flags, Mode::empty())?))
    }

    /// Takes the order, which nobody can take again; `None` where there is none any more.
    ///
    /// # Errors
    /// It can't be read.
    pub fn take(&self) -> io::Result<Option<Order>> {
        let order = read_json(&self.order())?;
        let _ = fs::remove_file(self.order());
        Ok(order)
    }

    /// Removes what is left of it. What can't be removed goes with the instance.
    pub fn discard(&self) {
        for leftover in [self.pipe(), self.order()] {
            let _ = fs::remove_file(leftover);
        }
    }
}

/// Removes what controllers left that were killed before they had a helper.
fn sweep(folder: &Path) {
    let age = |path: &Path| {
        let made = fs::symlink_metadata(path).and_then(|data| data.modified()).ok();
        made.and_then(|made| SystemTime::now().duration_since(made).ok())
    };
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if age(&path).is_some_and(|age| age >= LEFTOVER_AGE) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_order(check: impl FnOnce(Place, Order)) {
        let folder = tempfile::tempdir().unwrap();
        let env = vec![("KEY".to_owned(), "secret".to_owned())];
        let order = Order { command: vec!["true".to_owned()], env, workdir: None, tty: None };
        check(Place::new(InstanceDir(folder.path().to_owned()), &order).unwrap(), order);
    }

    fn left(place: &Place) -> usize {
        fs::read_dir(place.dir.exec()).unwrap().count()
    }

    #[test]
    fn an_order_is_taken_once() {
        with_order(|place, order| {
            assert_eq!(place.take().unwrap(), Some(order));
            assert_eq!(place.take().unwrap(), None);
            place.discard();
            assert_eq!(left(&place), 0);
        });
    }

    #[test]
    fn the_pipe_is_opened_only_while_the_controller_has_it_open() {
        with_order(|place, _| {
            let refused = || place.answer().map_err(|error| error.raw_os_error()).unwrap_err();
            assert_eq!(refused(), Some(libc::ENXIO));
            let controller = File::options().read(true).write(true).open(place.pipe()).unwrap();
            place.answer().unwrap();
            drop(controller);
            assert_eq!(refused(), Some(libc::ENXIO));
        });
    }

    #[test]
    fn old_orders_are_removed_with_the_next() {
        with_order(|place, order| {
            let next = Place::new(place.dir.clone(), &order).unwrap();
            assert_eq!(left(&place), 4, "it may be carried out yet");
            let long_ago = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
            for path in [place.pipe(), place.order()] {
                rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
            next.discard();
            Place::new(place.dir.clone(), &order).unwrap();
            assert_eq!((left(&place), place.pipe().exists()), (2, false));
        });
    }
}
