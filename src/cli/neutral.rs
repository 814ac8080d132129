//! Output that comes in pieces, made harmless for a terminal.

use super::text::{colour_sequence, is_steering};

/// Longest sequence of colours that is waited for; longer ones are spelled out. Real ones name at most a foreground and a
/// background (`ESC [ 38 ; 2 ; 255 ; 255 ; 255 ; 48 ; 2 ; ... m`).
const LONGEST_SEQUENCE: usize = 64;

/// Makes the bytes of one stream harmless, as [`harmless`](super::text::harmless) does with a text: line breaks and
/// colours stay, every other control character is spelled out, and bytes that are no UTF-8 are replaced.
#[derive(Debug, Default)]
pub struct Neutral {
    /// The beginning of a character or sequence whose rest has not come; at most [`LONGEST_SEQUENCE`] bytes.
    held: Vec<u8>,
    coloured: bool,
}

impl Neutral {
    /// What may be shown now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        let mut out = String::with_capacity(all.len());
        let mut rest = all.as_slice();
        while let Some(chunk) = rest.utf8_chunks().next() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            rest = rest.get(valid.len() + invalid.len()..).unwrap_or_default();
            let is_last = rest.is_empty();
            let unfinished = self.text(valid, is_last && invalid.is_empty(), &mut out);
            self.held.extend_from_slice(unfinished.as_bytes());
            let is_cut = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if is_last && is_cut {
                self.held.extend_from_slice(invalid);
            } else if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
        out
    }

    /// What is left at the end of the stream.
    pub fn finish(mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let mut out = String::new();
        let text = String::from_utf8_lossy(&held).into_owned();
        self.text(&text, false, &mut out);
        if self.coloured {
            out.push_str("\u{1b}[0m");
        }
        out
    }

    /// Appends a text made harmless, and returns its end where more may come that belongs to it.
    fn text<'a>(&mut self, text: &'a str, more_may_come: bool, out: &mut String) -> &'a str {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(length) = colour_sequence(rest) {
                let (sequence, after) = rest.split_at(length);
                out.push_str(sequence);
                self.coloured = true;
                rest = after;
                continue;
            }
            if more_may_come && is_unfinished(rest) {
                return rest;
            }
            match c {
                '\n' | '\t' => out.push(c),
                '\r' if rest.starts_with("\r\n") => out.push(c),
                c if is_steering(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
        ""
    }
}

/// Whether a text may be the beginning of a line break or of a sequence of colours.
fn is_unfinished(text: &str) -> bool {
    let parameters = text.strip_prefix("\u{1b}[");
    let is_sequence = parameters.is_some_and(|rest| rest.chars().all(|c| matches!(c, '0'..='9' | ';' | ':')));
    text == "\r" || text == "\u{1b}" || (is_sequence && text.len() < LONGEST_SEQUENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole, given in pieces of this size.
    fn shown(bytes: &[u8], size: usize) -> String {
        let mut neutral = Neutral::default();
        let told: String = bytes.chunks(size).map(|piece| neutral.push(piece)).collect();
        told + &neutral.finish()
    }

    #[test]
    fn pieces_of_any_size_are_shown_alike() {
        for (bytes, expected) in [
            (&b"two\nlines\t\r\n"[..], "two\nlines\t\r\n"),
            (b"\x1b[2Jgone", "\\u{1b}[2Jgone"),
            (b"\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            (b"over\rwrite", "over\\u{d}write"),
            (b"\x1b[1;31mred", "\u{1b}[1;31mred\u{1b}[0m"),
            ("gr\u{fc}n \u{1f600} \u{202e}\u{9b}2J".as_bytes(), "gr\u{fc}n \u{1f600} \\u{202e}\\u{9b}2J"),
            (b"bad \xff\xfe\xc3", "bad \u{fffd}\u{fffd}\u{fffd}"),
            (b"cut \x1b[31", "cut \\u{1b}[31"),
            (b"end \x1b", "end \\u{1b}"),
        ] {
            for size in 1..=bytes.len() {
                assert_eq!(shown(bytes, size), expected, "{bytes:?} by {size}");
            }
        }
    }

    #[test]
    fn what_could_become_a_sequence_is_not_held_for_ever() {
        let mut neutral = Neutral::default();
        let told = neutral.push(format!("\u{1b}[{}", "1;".repeat(1000)).as_bytes());
        assert!(told.starts_with("\\u{1b}[1;1;"), "{told}");
        assert!(neutral.held.len() <= LONGEST_SEQUENCE);
    }

    #[test]
    fn a_prompt_is_shown_at_once() {
        assert_eq!(Neutral::default().push(b"name: "), "name: ");
    }
}
