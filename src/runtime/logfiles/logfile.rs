//! The file that output is kept in, with its older parts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::LogBounds;
use crate::runtime::files::{make_private, private_file};

/// Name of the file that is written to; older parts have `.1`, `.2` ... appended, higher is older.
pub const CURRENT: &str = "output.log";

/// Path of a part: 0 is the one that is written to.
pub fn part(folder: &Path, number: u32) -> PathBuf {
    match number {
        0 => folder.join(CURRENT),
        _ => folder.join(format!("{CURRENT}.{number}")),
    }
}

/// Appends to a log whose size is bounded. Never fails the program that writes: what can't be written is counted
/// and told in the log once it can be written again.
#[derive(Debug)]
pub struct LogFile {
    folder: PathBuf,
    bounds: LogBounds,
    file: Option<File>,
    written: u64,
    lost: u64,
    /// Whether the file ends within a line, of which nothing more will come: a write of it failed midway.
    torn: bool,
}

impl LogFile {
    /// Opens the log in a folder, which is made where it is missing.
    ///
    /// # Errors
    /// The file can't be opened, or something that is a link lies in its place.
    pub fn open(folder: &Path, bounds: LogBounds) -> io::Result<Self> {
        make_private(folder)?;
        let file = open_current(folder)?;
        let written = file.metadata()?.len();
        let torn = written > 0 && ends_within_a_line(folder, written)?;
        Ok(Self { folder: folder.to_owned(), bounds, file: Some(file), written, lost: 0, torn })
    }

    /// Appends whole lines. A line is never split over two files; a file exceeds its bound by one line at most.
    pub fn append(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            let (now, later) = lines.split_at(self.fitting(lines));
            self.append_at_once(now);
            lines = later;
        }
    }

    /// Length of the lines that go into one file together: what fits into the present one, else into an empty one, and
    /// one line at least.
    fn fitting(&self, lines: &[u8]) -> usize {
        let whole = |room: u64| {
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let head = lines.get(..room).unwrap_or(lines);
            head.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1)
        };
        let first = || lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1);
        let room = self.bounds.file_bytes.saturating_sub(self.written);
        whole(room).or_else(|| whole(self.bounds.file_bytes)).unwrap_or_else(first)
    }

    fn append_at_once(&mut self, lines: &[u8]) {
        if self.written > 0 && self.written.saturating_add(lines.len() as u64) > self.bounds.file_bytes {
            self.rotate();
        }
        self.lost += self.write(lines) as u64;
    }

    /// Bytes that could not be written and were not told yet.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Whether bytes were lost that should be told in the log.
    pub fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Writes lines, on a line of their own whatever came before. Returns how many bytes of them are lost.
    fn write(&mut self, lines: &[u8]) -> usize {
        if self.file.is_none() {
            self.file = open_current(&self.folder).ok();
        }
        let apart: &[u8] = if self.torn { b"\n" } else { b"" };
        if self.write_bytes(apart) > 0 { lines.len() } else { self.write_bytes(lines) }
    }

    /// Returns how many bytes are lost.
    fn write_bytes(&mut self, mut bytes: &[u8]) -> usize {
        let Some(file) = &mut self.file else { return bytes.len() };
        while !bytes.is_empty() {
            let (now, later) = match file.write(bytes) {
                Ok(count) if count > 0 => bytes.split_at(count.min(bytes.len())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) => break,
            };
            self.written += now.len() as u64;
            self.torn = !now.ends_with(b"\n");
            bytes = later;
        }
        bytes.len()
    }

    /// Shifts the parts by one, dropping the oldest, and begins a new file. Where a part can't be shifted the
    /// file that is open goes on, as losing the bound is better than losing the output.
    fn rotate(&mut self) {
        let oldest = self.bounds.files.max(1) - 1;
        let _ = fs::remove_file(part(&self.folder, oldest));
        for number in (0..oldest).rev() {
            let _ = fs::rename(part(&self.folder, number), part(&self.folder, number + 1));
        }
        match open_current(&self.folder) {
            Ok(file) => {
                self.written = file.metadata().map_or(0, |data| data.len());
                self.torn &= self.written > 0;
                self.file = Some(file);
            }
            Err(_) => self.file = None,
        }
    }
}

fn open_current(folder: &Path) -> io::Result<File> {
    private_file().create(true).append(true).open(part(folder, 0))
}

fn ends_within_a_line(folder: &Path, length: u64) -> io::Result<bool> {
    let mut last = [0];
    let read = File::open(part(folder, 0))?.read_at(&mut last, length - 1)?;
    Ok(read > 0 && last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn texts(folder: &Path) -> Vec<Option<String>> {
        (0..4).map(|number| fs::read_to_string(part(folder, number)).ok()).collect()
    }

    #[test]
    fn the_oldest_part_goes_when_the_bound_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(folder.path(), LogBounds { file_bytes: 10, files: 3 }).unwrap();
        for line in ["aaaa\n", "bbbb\n", "cccc\n", "dddd\n", "eeee\n", "ffff\n", "gggg\n"] {
            log.append(line.as_bytes());
        }
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(texts(folder.path()), [text("gggg\n"), text("eeee\nffff\n"), text("cccc\ndddd\n"), None]);
    }

    #[test]
    fn what_comes_at_once_is_held_to_the_bound_too_and_a_long_line_stays_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(folder.path(), LogBounds { file_bytes: 10, files: 4 }).unwrap();
        log.append(b"aaaa\nbbbb\ncccc\na line of its own\ndd\nee\nffff\n");
        let text = |text: &str| Some(text.to_owned());
        let kept = ["ffff\n", "dd\nee\n", "a line of its own\n", "cccc\n"].map(text);
        assert_eq!(texts(folder.path()), kept);
        log.append(b"gg");
        assert_eq!(texts(folder.path())[0], text("ffff\ngg"));
    }

    #[test]
    fn a_log_goes_on_where_it_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = LogBounds { file_bytes: 10, files: 2 };
        LogFile::open(folder.path(), bounds).unwrap().append(b"aaaa\n");
        let mut log = LogFile::open(folder.path(), bounds).unwrap();
        log.append(b"bbbb\n");
        log.append(b"c\n");
        assert_eq!(texts(folder.path())[..2], [Some("c\n".to_owned()), Some("aaaa\nbbbb\n".to_owned())]);
    }

    #[test]
    fn a_line_that_could_not_be_written_whole_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = LogBounds { file_bytes: 1 << 30, files: 2 };
        let mut log = LogFile::open(folder.path(), bounds).unwrap();
        // A connection that nobody reads from is a disk that is full.
        let (mut disk, end) = UnixStream::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        log.file = Some(File::from(OwnedFd::from(end)));
        let long = [vec![b'a'; 8 << 20], b"bc\n".to_vec()].concat();
        log.append(&long);
        let kept = log.written;
        assert!((1..long.len() as u64 - 3).contains(&kept), "{kept}");
        assert_eq!(log.take_lost(), long.len() as u64 - kept);
        log.append(b"dddd\n");
        assert_eq!(log.take_lost(), 5);
        let mut read = vec![0; usize::try_from(kept).unwrap()];
        disk.read_exact(&mut read).unwrap();
        log.append(b"eeee\n");
        log.append(b"ffff\n");
        disk.read_exact(&mut read[..11]).unwrap();
        assert_eq!(String::from_utf8_lossy(&read[..11]), "\neeee\nffff\n");
        assert_eq!((log.take_lost(), log.written), (0, kept + 11));
        // As a supervisor finds it that follows one.
        fs::write(part(folder.path(), 0), "torn").unwrap();
        LogFile::open(folder.path(), bounds).unwrap().append(b"gggg\n");
        LogFile::open(folder.path(), bounds).unwrap().append(b"hhhh\n");
        assert_eq!(texts(folder.path())[0], Some("torn\ngggg\nhhhh\n".to_owned()));
    }

    #[test]
    fn a_link_in_place_of_the_log_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::write(&outside, "").unwrap();
        let logs = folder.path().join("logs");
        fs::create_dir(&logs).unwrap();
        std::os::unix::fs::symlink(&outside, part(&logs, 0)).unwrap();
        assert!(LogFile::open(&logs, LogBounds { file_bytes: 10, files: 2 }).is_err());
    }
}
