//! Where the last lines of kept output begin. Their fragments may lie among lines of the other stream.

use std::io::{self, Read, Seek};

use super::backwards::Backwards;
use super::cri::Line;
use crate::runtime::io::OutputStream;

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest line.
    Oldest,
    /// With the last that many lines.
    Last(u64),
    /// With what is written from now on, also in the middle of a line.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the sandbox runtime of Linux alone attaches"))]
    Now,
}

/// Most bytes that are looked through for fragments once enough lines were found: of a longer line the
/// end is told.
const LOOK_BACK: u64 = 1 << 20;

/// What was found so far, going back from the end. A line that has not ended counts as one, and as newer than those that
/// have.
#[derive(Debug)]
pub struct Tail {
    /// Lines that are still to be found.
    wanted: u64,
    /// The streams of lines that end and were found, the oldest one last.
    ended: Vec<OutputStream>,
    stdout: Side,
    stderr: Side,
    /// Streams whose line has not ended and is none of the last ones: who follows is told once it ends, others are not.
    awaited: Vec<OutputStream>,
    /// Ends of lines that were passed and are not told.
    passed: Skip,
    /// Bytes that were looked through since enough lines were found.
    looked: u64,
}

/// What was found last of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Nothing: a fragment is the end of what has not ended.
    Nothing,
    /// A line, or the begin of one, that is told.
    Told,
    /// A line that is not told.
    Passed,
}

/// Lines of each stream that are left out, those that end first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skip {
    /// Of standard output.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}

impl Skip {
    const fn add(&mut self, stream: OutputStream) {
        match stream {
            OutputStream::Stdout => self.stdout += 1,
            OutputStream::Stderr => self.stderr += 1,
        }
    }
}

/// Where reading begins in a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Offset of a line, in bytes.
    pub begin: u64,
    /// Lines that end from there on and are older than those that were wanted.
    pub skip: Skip,
}

impl Tail {
    /// Looks for that many lines.
    pub const fn new(wanted: u64) -> Self {
        let (stdout, stderr) = (Side::Nothing, Side::Nothing);
        let passed = Skip { stdout: 0, stderr: 0 };
        Self { wanted, ended: Vec::new(), stdout, stderr, awaited: Vec::new(), passed, looked: 0 }
    }

    /// Streams of which only what ends later is told.
    pub fn awaited(self) -> Vec<OutputStream> {
        self.awaited
    }

    /// Whether fewer lines were found than were wanted.
    pub const fn is_short(&self) -> bool {
        self.wanted > 0
    }

    /// Whether nothing older is of use.
    pub fn is_done(&self) -> bool {
        let is_passed = self.stdout == Side::Passed && self.stderr == Side::Passed;
        self.wanted == 0 && (is_passed || self.looked >= LOOK_BACK)
    }

    /// Goes back through a part, which is older than those before. Returns where to begin in it; nothing where it holds
    /// nothing of use.
    ///
    /// # Errors
    /// It can't be read.
    pub fn look<R: Read + Seek>(&mut self, part: &mut Backwards<R>) -> io::Result<Option<Place>> {
        let mut found = None;
        while !self.is_done()
            && let Some((lies, line)) = part.next_line()?
        {
            if Line::parse(&line).is_some_and(|line| self.is_told(&line)) {
                found = Some(Place { begin: lies.start, skip: self.passed });
            }
            if self.wanted == 0 {
                self.looked += lies.end - lies.start;
            }
        }
        Ok(found)
    }

    fn is_told(&mut self, line: &Line<'_>) -> bool {
        let side = match line.stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        match (line.full, self.wanted) {
            (true, 0) => {
                *side = Side::Passed;
                self.passed.add(line.stream);
            }
            (true, _) => {
                *side = Side::Told;
                self.wanted -= 1;
                self.ended.push(line.stream);
            }
            (false, _) if *side == Side::Nothing => {
                *side = Side::Told;
                self.unended(line.stream);
                return true;
            }
            (false, _) => {}
        }
        *side == Side::Told
    }

    /// Takes note of a line that has not ended, maybe in place of the oldest that has.
    fn unended(&mut self, stream: OutputStream) {
        if self.wanted > 0 {
            self.wanted -= 1;
        } else if let Some(oldest) = self.ended.pop() {
            self.passed.add(oldest);
        } else {
            self.awaited.push(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A part of lines such as `oF text`: the stream, the kind, the text.
    fn part(lines: &[&str]) -> String {
        let line = |line: &&str| {
            let (stream, rest) = line.split_at(1);
            let (kind, text) = rest.split_at(1);
            let stream = if stream == "o" { "stdout" } else { "stderr" };
            format!("2026-01-01T00:00:00Z {stream} {kind}{text}\n")
        };
        lines.iter().map(line).collect()
    }

    fn look(tail: &mut Tail, part: &str) -> Option<Place> {
        tail.look(&mut Backwards::new(Cursor::new(part), part.len() as u64, 100, 100)).unwrap()
    }

    /// The lines from where to begin on, and how many of both streams that end are left out.
    fn found<'a>(lines: &[&'a str], wanted: u64) -> (Vec<&'a str>, u64) {
        let text = part(lines);
        let all = text.len() as u64;
        let Place { begin, skip } =
            look(&mut Tail::new(wanted), &text).unwrap_or(Place { begin: all, skip: Skip::default() });
        let before = text[..usize::try_from(begin).unwrap()].lines().count();
        (lines[before..].to_vec(), skip.stdout + skip.stderr)
    }

    #[test]
    fn whole_lines_are_counted_from_the_end() {
        let lines = ["oF 1", "eF 2", "oF 3"];
        for (wanted, expected) in [(0, &lines[3..]), (1, &lines[2..]), (2, &lines[1..]), (3, &lines), (9, &lines)] {
            assert_eq!(found(&lines, wanted), (expected.to_vec(), 0), "{wanted}");
        }
    }

    #[test]
    fn fragments_belong_to_their_line_and_what_lies_between_is_left_out() {
        let lines = ["oF old", "oP a", "eF e", "oP b", "oF c"];
        assert_eq!(found(&lines, 1), (lines[1..].to_vec(), 1));
        assert_eq!(found(&lines, 2), (lines[1..].to_vec(), 0));
        let long = ["eF old", "oP a", "oP b", "oF c"];
        assert_eq!(found(&long, 1), (long[1..].to_vec(), 0));
    }

    #[test]
    fn what_has_not_ended_counts_as_the_newest_and_what_is_too_much_is_awaited() {
        let awaited = |lines: &[&str], wanted| {
            let mut tail = Tail::new(wanted);
            look(&mut tail, &part(lines));
            tail.awaited()
        };
        let lines = ["eP name: ", "oF 1", "oF 2", "oP half"];
        for (wanted, skip, is_awaited) in [
            (0, 2, vec![OutputStream::Stdout, OutputStream::Stderr]),
            (1, 2, vec![OutputStream::Stderr]),
            (2, 2, vec![]),
            (3, 1, vec![]),
            (4, 0, vec![]),
        ] {
            assert_eq!(found(&lines, wanted), (lines.to_vec(), skip), "{wanted}");
            assert_eq!(awaited(&lines, wanted), is_awaited, "{wanted}");
        }
        let lines = ["oF 1", "oP ha", "oP lf"];
        assert_eq!(found(&lines, 0), (lines[1..].to_vec(), 0));
        assert_eq!(found(&lines, 1), (lines[1..].to_vec(), 0));
        assert_eq!(found(&lines, 2), (lines.to_vec(), 0));
    }

    #[test]
    fn the_empty_end_of_a_line_that_was_cut_off_is_part_of_it() {
        let lines = ["oF one", "oF two", "oP fatal", "oF "];
        for (wanted, expected) in [(0, &lines[4..]), (1, &lines[2..]), (2, &lines[1..])] {
            assert_eq!(found(&lines, wanted), (expected.to_vec(), 0), "{wanted}");
        }
    }

    #[test]
    fn a_line_may_begin_in_an_older_part() {
        let mut tail = Tail::new(1);
        let newest = part(&["oP b", "oF c"]);
        assert_eq!(look(&mut tail, &newest), Some(Place { begin: 0, skip: Skip::default() }));
        assert!(!tail.is_done() && !tail.is_short());
        let older = part(&["eF old", "oF old", "oP a"]);
        let begin = part(&["eF old", "oF old"]).len() as u64;
        assert_eq!(look(&mut tail, &older).map(|place| place.begin), Some(begin));
        assert!(tail.is_done());
    }

    #[test]
    fn a_silent_stream_is_looked_for_only_so_far() {
        let line = format!("oF {}", "x".repeat(1000));
        let text = part(&vec![line.as_str(); 3000]);
        let mut tail = Tail::new(1);
        assert_eq!(look(&mut tail, &text).map(|place| place.skip), Some(Skip::default()));
        assert!(tail.is_done() && tail.looked < LOOK_BACK + 2000);
    }
}
