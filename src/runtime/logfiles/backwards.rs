//! Lines of a file from the last one to the first, of which only some blocks are in memory at once.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// A place in a file, before which it is read.
#[derive(Debug)]
pub struct Backwards<R> {
    from: R,
    /// Bytes of one read.
    block: usize,
    /// Bytes of a line that are kept, of its begin; what comes after them in a longer one is left out.
    longest: usize,
    /// Where what is held begins.
    at: u64,
    /// Where it ends, which is further than its length tells while it is a line whose end was left out.
    end: u64,
    held: Vec<u8>,
}

impl<R: Read + Seek> Backwards<R> {
    /// Reads what is before `end`, which is the file's length or less, in blocks and lines of these sizes in bytes.
    pub const fn new(from: R, end: u64, block: usize, longest: usize) -> Self {
        Self { from, block, longest, at: end, end, held: Vec::new() }
    }

    /// The line before, without its line break, and where it lies with that. None at the begin of the file.
    ///
    /// # Errors
    /// It can't be read, or has become shorter.
    pub fn next_line(&mut self) -> io::Result<Option<(Range<u64>, Vec<u8>)>> {
        loop {
            // Its last byte may be the line's own break.
            let before = self.held.split_last().map_or(&[][..], |(_, before)| before);
            let found = before.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
            match found.or((self.at == 0).then_some(0)) {
                None => self.hold_more()?,
                Some(_) if self.end == 0 => return Ok(None),
                Some(begin) => {
                    let mut line = self.held.split_off(begin);
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    line.truncate(self.longest);
                    let lies = self.at + begin as u64..self.end;
                    self.end = lies.start;
                    return Ok(Some((lies, line)));
                }
            }
        }
    }

    /// Reads the block before what is held, which is part of one line.
    fn hold_more(&mut self) -> io::Result<()> {
        self.held.truncate(self.longest);
        let size = self.block.min(usize::try_from(self.at).unwrap_or(usize::MAX));
        self.at -= size as u64;
        self.from.seek(SeekFrom::Start(self.at))?;
        let mut held = vec![0; size];
        self.from.read_exact(&mut held)?;
        held.append(&mut self.held);
        self.held = held;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Counts what is read.
    struct Counting<'a> {
        inner: Cursor<&'a [u8]>,
        read: u64,
    }

    impl<'a> Counting<'a> {
        fn new(text: &'a [u8]) -> Self {
            Self { inner: Cursor::new(text), read: 0 }
        }
    }

    impl Read for Counting<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let size = self.inner.read(buffer)?;
            self.read += size as u64;
            Ok(size)
        }
    }

    impl Seek for Counting<'_> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.inner.seek(to)
        }
    }

    /// All lines, the last one first.
    fn backwards(text: &[u8], block: usize, longest: usize) -> Vec<(Range<u64>, Vec<u8>)> {
        let mut lines = Backwards::new(Cursor::new(text), text.len() as u64, block, longest);
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    /// The same, found the other way round.
    fn forwards(text: &[u8], longest: usize) -> Vec<(Range<u64>, Vec<u8>)> {
        let mut at = 0;
        let mut lines = Vec::new();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let begin = at;
            at += line.len() as u64;
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            lines.push((begin..at, line[..line.len().min(longest)].to_vec()));
        }
        lines.reverse();
        lines
    }

    proptest! {
        #[test]
        fn lines_are_the_same_from_both_ends(
            text in vec(prop_oneof![3 => Just(b'x'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..60),
            block in 1_usize..20,
            longest in 1_usize..20,
        ) {
            prop_assert_eq!(backwards(&text, block, longest), forwards(&text, longest));
        }
    }

    #[test]
    fn no_more_is_read_or_held_than_the_lines_and_a_block() {
        let text = b"line\n".repeat(10_000);
        let mut from = Counting::new(&text);
        let mut lines = Backwards::new(&mut from, text.len() as u64, 64, 100);
        for _ in 0..20 {
            assert_eq!(lines.next_line().unwrap().unwrap().1, b"line");
        }
        assert!(lines.held.len() <= 64 + 5, "{}", lines.held.len());
        assert!(from.read <= 20 * 5 + 64, "{}", from.read);

        let endless = vec![b'x'; 10_000];
        let mut lines = Backwards::new(Counting::new(&endless), 10_000, 64, 100);
        while lines.at > 0 {
            lines.hold_more().unwrap();
            assert!(lines.held.len() <= 100 + 64, "{}", lines.held.len());
        }
    }
}
