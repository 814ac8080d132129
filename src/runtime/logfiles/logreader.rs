//! Reads kept output over all of its parts, while it may be written and rotated.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::backwards::Backwards;
use super::cri::{LONGEST_TEXT, Line};
use super::logfile::part;
use super::loglines::Assemble;
pub use super::logtail::Begin;
use super::logtail::{Place, Skip, Tail};
use crate::runtime::io::OutputStream;

/// Most parts that are looked for; more than any log has.
const MOST_PARTS: u32 = 100;
/// Size of one read.
const READ_SIZE: usize = 64 << 10;
/// Longest line of a file: a fragment, after its time and the names of its stream and kind.
const LONGEST_KEPT: usize = LONGEST_TEXT + 64;

/// What follows a part.
#[derive(Debug)]
enum Successor {
    /// This one.
    Is(File),
    /// None yet: it is still written to.
    None,
    /// It can't be told, as the part was dropped.
    Unknown,
}

/// Where kept output ended at some moment.
#[derive(Debug, Clone, Copy)]
struct End {
    /// The part that was written to.
    inode: u64,
    /// Its size.
    size: u64,
}

/// Where reading begins, as it was found.
#[derive(Debug)]
struct Found {
    /// The part, open there; none where there is no output.
    file: Option<File>,
    /// Lines that end from there on and are too old.
    skip: Skip,
    /// Streams of which only what is written later is told.
    awaited: Vec<OutputStream>,
    /// Where all output ended.
    opened: Option<End>,
}

impl Found {
    /// Everything from there on.
    fn new(file: Option<File>, opened: Option<End>) -> Self {
        Self { file, skip: Skip::default(), awaited: Vec::new(), opened }
    }
}

/// How far is read.
#[derive(Debug, Clone, Copy)]
enum Extent {
    /// For as long as anything is written.
    Open,
    /// To where the output ended when it was opened; nowhere where there was none.
    Until(Option<End>),
}

/// A place in the kept output.
#[derive(Debug)]
pub struct LogReader<A> {
    folder: PathBuf,
    /// Streams of which only what is written later is told.
    awaited: Vec<OutputStream>,
    /// Where the output ended when it was opened.
    opened: Option<End>,
    extent: Extent,
    file: Option<File>,
    /// What follows it, as far as was seen. A part is held, so that it can be read even when it is dropped before its turn.
    next: Successor,
    /// Bytes of a line whose end was not read yet.
    rest: Vec<u8>,
    assemble: A,
}

impl Extent {
    /// Most bytes that are read of a part from where it is.
    fn room(self, file: &mut File) -> io::Result<u64> {
        Ok(match self {
            Self::Open => u64::MAX,
            Self::Until(None) => 0,
            Self::Until(Some(end)) if file.metadata()?.ino() == end.inode => {
                end.size.saturating_sub(file.stream_position()?)
            }
            Self::Until(Some(_)) => u64::MAX,
        })
    }
}

impl<A: Assemble> LogReader<A> {
    /// A reader that begins there.
    ///
    /// # Errors
    /// A part can't be read.
    pub fn open(folder: &Path, begin: Begin, mut assemble: A) -> io::Result<Self> {
        let Found { file, skip, awaited, opened } = match begin {
            Begin::Oldest => Found::new(oldest(folder)?, end(folder)?),
            Begin::Last(lines) => last_lines(folder, lines)?,
            Begin::Now => Found::new(newest(folder)?, end(folder)?),
        };
        assemble.skip(skip);
        let (folder, extent) = (folder.to_owned(), Extent::Open);
        let (next, rest) = (Successor::None, Vec::new());
        let mut reader = Self { folder, awaited, opened, extent, file: None, next, rest, assemble };
        file.map_or(Ok(()), |file| reader.turn_to(file))?;
        Ok(reader)
    }

    /// The same that ends where the output ended when it was opened, however much is written meanwhile.
    pub fn until_opened(mut self) -> Self {
        for stream in std::mem::take(&mut self.awaited) {
            self.assemble.leave_out(stream);
        }
        Self { extent: Extent::Until(self.opened), ..self }
    }

    /// Reads on and appends what is new; false when there was nothing.
    ///
    /// # Errors
    /// A part can't be read.
    pub fn read(&mut self, items: &mut Vec<A::Item>) -> io::Result<bool> {
        let mut buffer = vec![0; READ_SIZE];
        loop {
            if self.file.is_none()
                && let Some(file) = oldest(&self.folder)?
            {
                self.turn_to(file)?;
            }
            let Some(file) = &mut self.file else { return Ok(false) };
            let room = self.extent.room(file)?;
            if room == 0 {
                return Ok(false);
            }
            match file.take(room).read(&mut buffer)? {
                0 => {
                    if !self.go_on(items)? {
                        return Ok(false);
                    }
                }
                size => {
                    self.take(buffer.get(..size).unwrap_or_default(), items);
                    return Ok(true);
                }
            }
        }
    }

    /// Appends what is left of a line that has not ended, where nothing more is read.
    pub fn finish(&mut self, items: &mut Vec<A::Item>) {
        self.assemble.finish(items);
    }

    fn turn_to(&mut self, file: File) -> io::Result<()> {
        self.next = self.successor(&file)?;
        self.file = Some(file);
        Ok(())
    }

    /// Goes on where a part gave no more; false where that part is still written to.
    fn go_on(&mut self, items: &mut Vec<A::Item>) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let next = match std::mem::replace(&mut self.next, Successor::None) {
            Successor::Is(next) => next,
            Successor::None => {
                self.next = self.successor(file)?;
                // What was written between the last read and the rotation is read before that one is left.
                return Ok(!matches!(self.next, Successor::None));
            }
            Successor::Unknown => {
                self.next = Successor::Unknown;
                if let Extent::Until(_) = self.extent {
                    // Where it ended may be gone too.
                    self.assemble.lost(items);
                    return Ok(false);
                }
                let Some(oldest) = oldest(&self.folder)? else { return Ok(false) };
                self.rest.clear();
                self.assemble.lost(items);
                oldest
            }
        };
        self.turn_to(next)?;
        Ok(true)
    }

    fn successor(&self, file: &File) -> io::Result<Successor> {
        // What is shifted meanwhile is found under its higher number, as these are tried after the lower ones.
        let inode = file.metadata()?.ino();
        let number = || {
            (0..MOST_PARTS)
                .find(|number| fs::metadata(part(&self.folder, *number)).is_ok_and(|data| data.ino() == inode))
        };
        let mut at = number();
        loop {
            let (before, Some(found)) = (at, at) else { return Ok(Successor::Unknown) };
            if found == 0 {
                return Ok(Successor::None);
            }
            let next = optional(File::open(part(&self.folder, found - 1)))?;
            at = number();
            // Otherwise parts were shifted in between, and that one may be a later one.
            if at == before {
                return Ok(next.map_or(Successor::None, Successor::Is));
            }
        }
    }

    fn take(&mut self, bytes: &[u8], items: &mut Vec<A::Item>) {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut left = rest.as_slice();
        while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
            let (line, after) = left.split_at(end);
            if let Some(line) = Line::parse(line) {
                self.assemble.take(&line, items);
            }
            left = after.get(1..).unwrap_or_default();
        }
        self.rest = left.to_vec();
    }
}

fn optional<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn oldest(folder: &Path) -> io::Result<Option<File>> {
    for number in (0..MOST_PARTS).rev() {
        if let Some(file) = optional(File::open(part(folder, number)))? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The newest part, open after its last line.
fn newest(folder: &Path) -> io::Result<Option<File>> {
    for number in 0..MOST_PARTS {
        // The first is missing for a moment while parts are shifted.
        let Some(mut file) = optional(File::open(part(folder, number)))? else { continue };
        // Where a line is just being written, it is read from its begin.
        let begin = file.metadata()?.len().saturating_sub(LONGEST_KEPT as u64);
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let after = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        file.seek(SeekFrom::Start(begin + after as u64))?;
        return Ok(Some(file));
    }
    Ok(None)
}

/// Where the output ends now; nowhere where there is none.
fn end(folder: &Path) -> io::Result<Option<End>> {
    for number in 0..MOST_PARTS {
        // The first is missing for a moment while parts are shifted.
        if let Some(data) = optional(fs::metadata(part(folder, number)))? {
            return Ok(Some(End { inode: data.ino(), size: data.len() }));
        }
    }
    Ok(None)
}

/// Where the last `wanted` lines begin.
fn last_lines(folder: &Path, wanted: u64) -> io::Result<Found> {
    let mut tail = Tail::new(wanted);
    let (mut found, mut newest): (_, Option<End>) = (None, None);
    let mut seen = BTreeSet::new();
    for number in 0..MOST_PARTS {
        let Some(file) = optional(File::open(part(folder, number)))? else {
            match newest {
                // The first is missing for a moment while parts are shifted.
                None => continue,
                Some(_) => break,
            }
        };
        let data = file.metadata()?;
        let (inode, size) = (data.ino(), data.len());
        // Shifted meanwhile.
        if !seen.insert(inode) {
            continue;
        }
        newest.get_or_insert(End { inode, size });
        let place = tail.look(&mut Backwards::new(&file, size, READ_SIZE, LONGEST_KEPT))?;
        // Where nothing is of use, what comes after all of it is read.
        let place = place.or((seen.len() == 1).then_some(Place { begin: size, skip: Skip::default() }));
        found = place.map(|place| (file, place)).or(found);
        if tail.is_done() {
            break;
        }
    }
    match found {
        Some((mut file, Place { begin, skip })) if !tail.is_short() => {
            file.seek(SeekFrom::Start(begin))?;
            Ok(Found { file: Some(file), skip, awaited: tail.awaited(), opened: newest })
        }
        _ => Ok(Found::new(oldest(folder)?, newest)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use chrono::Utc;

    use super::*;
    use crate::runtime::io::{ExecOutput, LogLine};
    use crate::runtime::logfiles::LogBounds;
    use crate::runtime::logfiles::cri::Framer;
    use crate::runtime::logfiles::logfile::LogFile;
    use crate::runtime::logfiles::loglines::{Joined, LOST, Written};

    fn write(log: &mut LogFile, text: &str) {
        let mut out = Vec::new();
        Framer::new(OutputStream::Stdout).push(Utc::now(), text.as_bytes(), &mut out);
        log.append(&out);
    }

    fn texts(reader: &mut LogReader<Joined>) -> Vec<String> {
        let mut lines = Vec::new();
        while reader.read(&mut lines).unwrap() {}
        whole(lines)
    }

    /// The texts of lines, of which the pieces are joined.
    fn whole(lines: Vec<LogLine>) -> Vec<String> {
        let (mut open, mut found) = (std::collections::HashMap::<_, String>::new(), Vec::new());
        for line in lines {
            let is_error = line.stream == OutputStream::Stderr;
            let text = open.remove(&is_error).unwrap_or_default() + &line.text.lossy();
            if line.goes_on {
                open.insert(is_error, text);
            } else {
                found.push(text);
            }
        }
        found
    }

    /// Everything up to now, also what has not ended.
    fn until_now(folder: &Path, begin: Begin) -> Vec<String> {
        let mut reader = LogReader::open(folder, begin, Joined::new(None)).unwrap().until_opened();
        let mut lines = Vec::new();
        while reader.read(&mut lines).unwrap() {}
        reader.finish(&mut lines);
        whole(lines)
    }

    fn log(folder: &Path) -> LogFile {
        LogFile::open(folder, LogBounds { file_bytes: 100, files: 3 }).unwrap()
    }

    #[test]
    fn lines_come_over_all_parts_and_go_on_after_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path());
        write(&mut log, "1\n");
        let mut reader = LogReader::open(folder.path(), Begin::Oldest, Joined::new(None)).unwrap();
        assert_eq!(texts(&mut reader), ["1"]);
        for line in ["2\n", "3\n", "4\n", "5\n"] {
            write(&mut log, line);
        }
        assert_eq!(texts(&mut reader), ["2", "3", "4", "5"]);
        assert!(part(folder.path(), 1).exists());
    }

    #[test]
    fn the_part_after_the_one_that_is_read_is_not_lost_and_what_is_lost_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path());
        for line in ["1\n", "2\n", "3\n", "4\n", "5\n"] {
            write(&mut log, line);
        }
        // Parts of two lines: 1 and 2, 3 and 4, 5.
        let mut reader = LogReader::open(folder.path(), Begin::Oldest, Joined::new(None)).unwrap();
        for line in ["6\n", "7\n"] {
            write(&mut log, line);
        }
        assert_eq!(texts(&mut reader), ["1", "2", "3", "4", "5", "6", "7"], "the first two are gone from the folder");
        for line in ["8\n", "9\n", "10\n", "11\n", "12\n", "13\n", "14\n", "15\n", "16\n", "17\n", "18\n", "19\n"] {
            write(&mut log, line);
        }
        let left = texts(&mut reader);
        assert_eq!((left.first().map(String::as_str), left.last().map(String::as_str)), (Some("8"), Some("19")));
        assert_eq!(left.iter().filter(|line| *line == LOST).count(), 1, "{left:?}");
    }

    #[test]
    fn what_is_written_right_before_a_rotation_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path());
        write(&mut log, "1\n");
        let mut reader = LogReader::open(folder.path(), Begin::Oldest, Joined::new(None)).unwrap();
        assert_eq!(texts(&mut reader), ["1"]);
        let mut lines = Vec::new();
        // The end of the part was reached; whoever goes on now finds that it was rotated meanwhile.
        for line in ["2\n", "3\n"] {
            write(&mut log, line);
        }
        assert!(reader.go_on(&mut lines).unwrap());
        assert_eq!(texts(&mut reader), ["2", "3"]);
        for line in ["4\n", "5\n", "6\n", "7\n", "8\n", "9\n"] {
            write(&mut log, line);
        }
        assert!(reader.go_on(&mut lines).unwrap());
        assert_eq!(texts(&mut reader)[..2], ["4".to_owned(), LOST.to_owned()], "also where it was dropped meanwhile");
    }

    #[test]
    fn the_last_lines_are_found_over_parts() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path());
        for line in ["1\n", "2\n", "3\n", "4\n", "5\n"] {
            write(&mut log, line);
        }
        let tail = |count| texts(&mut LogReader::open(folder.path(), Begin::Last(count), Joined::new(None)).unwrap());
        assert_eq!(tail(0), Vec::<String>::new());
        assert_eq!(tail(1), ["5"]);
        assert_eq!(tail(4), ["2", "3", "4", "5"]);
        assert_eq!(tail(100), ["1", "2", "3", "4", "5"]);
    }

    #[test]
    fn the_last_lines_of_a_long_part_are_found_without_reading_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut newest = File::create(part(folder.path(), 0)).unwrap();
        // A hole: reading through it would take minutes, and holding it all of the memory.
        newest.seek(SeekFrom::Start(1 << 40)).unwrap();
        newest.write_all(b"\n2026-01-01T00:00:00Z stderr F e\n2026-01-01T00:00:00Z stdout F a\n").unwrap();
        newest.write_all(b"2026-01-01T00:00:01Z stdout F b\n2026-01-01T00:00:01Z stderr F f\n").unwrap();
        let reader = LogReader::open(folder.path(), Begin::Last(2), Joined::new(None));
        assert_eq!(texts(&mut reader.unwrap()), ["b", "f"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_last_lines_are_the_end_of_all(
            written in vec((any::<bool>(), any::<bool>(), prop_oneof![9 => 0..50_usize, 1 => 0..LONGEST_TEXT]), 0..60),
            file_bytes in prop_oneof![100..2000_u64, 100_000..1_000_000_u64],
            last in 0..70_usize,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut log = LogFile::open(folder.path(), LogBounds { file_bytes, files: 90 }).unwrap();
            for (number, (is_error, full, size)) in written.iter().enumerate() {
                let (stream, kind) = (if *is_error { "stderr" } else { "stdout" }, if *full { 'F' } else { 'P' });
                let text = "x".repeat(*size);
                log.append(format!("2026-01-01T00:00:00Z {stream} {kind} {number}{text}\n").as_bytes());
            }
            let all = until_now(folder.path(), Begin::Oldest);
            let told = u64::try_from(last).unwrap();
            prop_assert_eq!(until_now(folder.path(), Begin::Last(told)), &all[all.len().saturating_sub(last)..]);
        }
    }

    #[test]
    fn what_is_written_after_it_was_opened_is_left_out_where_nobody_follows() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path());
        ["1\n", "2\n", "3\n"].iter().for_each(|line| write(&mut log, line));
        let open = |begin| LogReader::open(folder.path(), begin, Joined::new(None)).unwrap().until_opened();
        let (mut all, mut last) = (open(Begin::Oldest), open(Begin::Last(2)));
        write(&mut log, "4\n");
        assert_eq!(
            (texts(&mut all), texts(&mut last)),
            (vec!["1".into(), "2".into(), "3".into()], vec!["2".into(), "3".into()])
        );
        let mut none = open(Begin::Last(0));
        // Far enough for every part to be dropped.
        ["5\n", "6\n", "7\n", "8\n", "9\n", "10\n", "11\n"].iter().for_each(|line| write(&mut log, line));
        assert_eq!((texts(&mut none).len(), texts(&mut last).len()), (0, 0));
    }

    #[test]
    fn the_last_lines_are_whole_where_the_other_stream_wrote_between_their_fragments() {
        let folder = tempfile::tempdir().unwrap();
        let older = "2026-01-01T00:00:00Z stdout F old\n2026-01-01T00:00:01Z stdout P a\n";
        let newest = "2026-01-01T00:00:01Z stderr F e\n2026-01-01T00:00:02Z stdout F b\n";
        fs::write(part(folder.path(), 1), older).unwrap();
        fs::write(part(folder.path(), 0), newest).unwrap();
        for (count, expected) in [(0, &[][..]), (1, &["ab"]), (2, &["e", "ab"]), (3, &["old", "e", "ab"])] {
            let reader = LogReader::open(folder.path(), Begin::Last(count), Joined::new(None));
            assert_eq!(texts(&mut reader.unwrap()), expected, "{count}");
        }
    }

    #[test]
    fn the_begin_of_a_line_is_told_where_reading_ends() {
        let folder = tempfile::tempdir().unwrap();
        let text = "2026-01-01T00:00:00Z stdout F old\n2026-01-01T00:00:01Z stdout P name: \n";
        fs::write(part(folder.path(), 0), text).unwrap();
        for (count, expected) in [(0, &[][..]), (1, &["name: "]), (2, &["old", "name: "]), (3, &["old", "name: "])] {
            assert_eq!(until_now(folder.path(), Begin::Last(count)), expected, "{count}");
        }
        assert_eq!(until_now(folder.path(), Begin::Oldest), ["old", "name: "]);
    }

    #[test]
    fn who_follows_is_told_a_line_that_ends_later_also_where_it_is_none_of_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let begun = "2026-01-01T00:00:00Z stderr P name: \n2026-01-01T00:00:01Z stdout F old\n\
                     2026-01-01T00:00:02Z stdout P half \n";
        for (count, last, all) in [
            (0, &[][..], &["name: x", "half a"][..]),
            (1, &["half "], &["name: x", "half a"]),
            (2, &["name: ", "half "], &["name: x", "half a"]),
            (3, &["old", "name: ", "half "], &["old", "name: x", "half a"]),
        ] {
            fs::write(part(folder.path(), 0), begun).unwrap();
            assert_eq!(until_now(folder.path(), Begin::Last(count)), last, "{count}");
            let mut reader = LogReader::open(folder.path(), Begin::Last(count), Joined::new(None)).unwrap();
            let ended = "2026-01-01T00:00:03Z stderr F x\n2026-01-01T00:00:03Z stdout F a\n";
            fs::write(part(folder.path(), 0), format!("{begun}{ended}")).unwrap();
            assert_eq!(texts(&mut reader), all, "{count}");
        }
    }

    #[test]
    fn no_piece_is_told_of_a_long_line_that_has_not_ended_and_is_none_of_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("2026-01-01T00:00:00Z stderr P {}\n", "x".repeat(LONGEST_TEXT)).repeat(6);
        fs::write(part(folder.path(), 0), format!("{long}2026-01-01T00:00:01Z stdout P half\n")).unwrap();
        assert_eq!(until_now(folder.path(), Begin::Last(1)), ["half"]);
        assert_eq!(until_now(folder.path(), Begin::Last(0)), Vec::<String>::new());
        let two = until_now(folder.path(), Begin::Last(2));
        assert_eq!(two.iter().map(String::len).collect::<Vec<_>>(), [6 * LONGEST_TEXT, 4]);
    }

    #[test]
    fn fragments_are_joined_and_older_lines_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let text = "2026-01-01T00:00:00Z stdout F old\n2026-01-01T00:00:01Z stdout P a\n\
                    2026-01-01T00:00:01Z stderr F e\n2026-01-01T00:00:02Z stdout F b\n";
        fs::write(part(folder.path(), 0), text).unwrap();
        let since = Some("2026-01-01T00:00:01Z".parse().unwrap());
        let mut reader = LogReader::open(folder.path(), Begin::Oldest, Joined::new(since)).unwrap();
        assert_eq!(texts(&mut reader), ["e", "ab"]);
    }

    #[test]
    fn output_is_given_back_as_it_is_written_from_now_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path());
        log.append(b"2026-01-01T00:00:00Z stdout F old\n2026-01-01T00:00:00Z stdout P half \n");
        let mut reader = LogReader::open(folder.path(), Begin::Now, Written).unwrap();
        let mut read = || {
            let mut out = Vec::new();
            while reader.read(&mut out).unwrap() {}
            out
        };
        assert_eq!(read(), []);
        log.append(b"2026-01-01T00:00:01Z stdout P a \xff\n2026-01-01T00:00:01Z stderr F e\n");
        let first = [ExecOutput::Stdout((&b"a \xff"[..]).into()), ExecOutput::Stderr("e\n".into())];
        assert_eq!(read(), first, "before the line has ended");
        log.append(b"2026-01-01T00:00:02Z stdout F b\n");
        assert_eq!(read(), [ExecOutput::Stdout("b\n".into())]);
    }

    #[test]
    fn reading_from_now_on_begins_with_a_line_that_is_just_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(LONGEST_TEXT);
        let text = format!("2026-01-01T00:00:00Z stdout F {long}\n2026-01-01T00:00:01Z stdout F a");
        fs::write(part(folder.path(), 0), &text).unwrap();
        let mut reader = LogReader::open(folder.path(), Begin::Now, Joined::new(None)).unwrap();
        fs::write(part(folder.path(), 0), text + "b\n").unwrap();
        assert_eq!(texts(&mut reader), ["ab"]);
    }
}
