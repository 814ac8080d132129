//! Prints lines of output, and puts the pieces of long ones together.

use std::collections::BTreeMap;

use chrono::SecondsFormat;

use super::output::{Colours, print, print_bytes, stdout_is_terminal};
use super::text::harmless;
use crate::runtime::io::{LogLine, OutputStream};

/// Prints lines as they were written, on a terminal made harmless.
pub struct Printer {
    timestamps: bool,
    terminal: bool,
    /// What lines begin with, by instance; nothing where there is one instance alone.
    prefixes: BTreeMap<String, String>,
    /// Whose line was printed last, where it goes on.
    open: Option<(String, OutputStream)>,
}

impl Printer {
    /// Prints on standard output; with `timestamps`, each line begins with its time.
    pub fn new(timestamps: bool) -> Self {
        Self { timestamps, terminal: stdout_is_terminal(), prefixes: BTreeMap::new(), open: None }
    }

    /// Takes note of the names of all instances; where there are several, each line begins with one.
    pub fn set_instances(&mut self, names: &[String]) {
        if names.len() < 2 {
            return;
        }
        let width = names.iter().map(String::len).max().unwrap_or(0);
        let colours = Colours::for_stream(self.terminal);
        let prefix =
            |(number, name): (usize, &String)| (name.clone(), colours.nth(number, &format!("{name:width$} | ")));
        self.prefixes = names.iter().enumerate().map(prefix).collect();
    }

    /// Prints a line, or a piece of one.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub fn print(&mut self, instance: &str, line: &LogLine) -> anyhow::Result<()> {
        let bytes = self.line(instance, line);
        if self.terminal { print(&String::from_utf8_lossy(&bytes)) } else { print_bytes(&bytes) }
    }

    /// Ends a line that goes on; what is printed of it later begins another one.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub fn end_line(&mut self) -> anyhow::Result<()> {
        if self.open.take().is_some() { print_bytes(b"\n") } else { Ok(()) }
    }

    /// Ends a line that goes on where it is shown, so that what is told beside it has a line of its own.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub fn make_room(&mut self) -> anyhow::Result<()> {
        if self.terminal { self.end_line() } else { Ok(()) }
    }

    /// What is printed of a line. After a piece that goes on there is no line break until its line ends, or another line
    /// comes between.
    fn line(&mut self, instance: &str, line: &LogLine) -> Vec<u8> {
        let mut out = Vec::new();
        let is_rest = self.open.take().is_some_and(|(open, stream)| {
            let is_rest = open == instance && stream == line.stream;
            if !is_rest {
                out.push(b'\n');
            }
            is_rest
        });
        if !is_rest {
            out.extend_from_slice(self.prefixes.get(instance).map_or("", String::as_str).as_bytes());
            if self.timestamps {
                out.extend_from_slice(line.at.to_rfc3339_opts(SecondsFormat::Nanos, true).as_bytes());
                out.push(b' ');
            }
        }
        if self.terminal {
            out.extend_from_slice(harmless(&line.text.lossy()).as_bytes());
        } else {
            out.extend_from_slice(line.text.as_bytes());
        }
        if line.goes_on {
            self.open = Some((instance.to_owned(), line.stream));
        } else {
            out.push(b'\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn printer(terminal: bool) -> Printer {
        Printer { timestamps: false, terminal, prefixes: BTreeMap::new(), open: None }
    }

    fn line(bytes: &[u8]) -> LogLine {
        let text = bytes.to_vec().into();
        LogLine { at: DateTime::UNIX_EPOCH, stream: OutputStream::Stdout, text, goes_on: false }
    }

    fn piece(bytes: &[u8]) -> LogLine {
        LogLine { goes_on: true, ..line(bytes) }
    }

    /// Everything that is printed of lines of these slots of `d/web`.
    fn printed(mut printer: Printer, lines: &[(u32, LogLine)]) -> String {
        let of = |(slot, line): &(u32, LogLine)| printer.line(&format!("d/web/{slot}"), line);
        String::from_utf8(lines.iter().flat_map(of).collect()).unwrap()
    }

    fn of_several() -> Printer {
        let mut printer = printer(false);
        printer.set_instances(&["d/web/9".to_owned(), "d/web/10".to_owned()]);
        printer
    }

    #[test]
    fn lines_of_one_instance_are_printed_as_they_are() {
        let mut printer = printer(false);
        printer.set_instances(&["demo/web/0".to_owned()]);
        assert_eq!(printer.line("demo/web/0", &line(b"hi \x1b[2J\xff\r")), b"hi \x1b[2J\xff\r\n");
    }

    #[test]
    fn lines_of_several_instances_say_whose_they_are() {
        assert_eq!(printed(of_several(), &[(9, line(b"hi"))]), "d/web/9  | hi\n");
    }

    #[test]
    fn a_terminal_is_not_steered_by_what_instances_write() {
        let mut printer = printer(true);
        assert_eq!(printer.line("d/web/0", &line(b"hi\x1b[2J\xff")), "hi\\u{1b}[2J\u{fffd}\n".as_bytes());
    }

    #[test]
    fn timestamps_come_first_and_once_per_line() {
        let printer = Printer { timestamps: true, ..printer(false) };
        let lines = [(0, piece(b"one ")), (0, piece(b"and ")), (0, line(b"the same")), (0, line(b"next"))];
        let time = "1970-01-01T00:00:00.000000000Z";
        assert_eq!(printed(printer, &lines), format!("{time} one and the same\n{time} next\n"));
    }

    #[test]
    fn a_line_that_goes_on_is_broken_only_where_another_one_comes_between() {
        let lines = [(9, piece(b"a")), (9, piece(b"b")), (9, line(b"c")), (10, line(b"d"))];
        assert_eq!(printed(of_several(), &lines), "d/web/9  | abc\nd/web/10 | d\n");
        let lines = [(9, piece(b"a")), (10, piece(b"b")), (10, line(b"c")), (9, line(b"d"))];
        assert_eq!(printed(of_several(), &lines), "d/web/9  | a\nd/web/10 | bc\nd/web/9  | d\n");
        let error = LogLine { stream: OutputStream::Stderr, ..line(b"oh") };
        assert_eq!(printed(printer(false), &[(0, piece(b"a")), (0, error), (0, line(b"b"))]), "a\noh\nb\n");
    }
}
