//! Printing: formats, tables, and what the terminal can show.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use serde::Serialize;

use super::neutral::Neutral;

/// Spaces between columns (kubectl: 3).
const COLUMN_GAP: u16 = 3;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table with more columns
    Wide,
    /// JSON: an array of the objects; of several types at once, an object with an array of each
    Json,
    /// The same as YAML
    Yaml,
    /// TYPE/NAME, one per line
    Name,
}

/// How verbs print that know a summary and JSON alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DataFormat {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Prints a value on standard output.
pub fn print_data(format: DataFormat, value: &impl Serialize) -> anyhow::Result<()> {
    let text = match format {
        DataFormat::Json => serde_json::to_string_pretty(value)? + "\n",
        DataFormat::Yaml => serde_yaml::to_string(value)?,
    };
    print(&text)
}

/// Prints on standard output, made harmless where that is a terminal; where nobody reads it any more, the error says so.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(shown(text, out.is_terminal()).as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints bytes on standard output as they are; where nobody reads it any more, the error says so.
pub fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Prints a line on standard error, made harmless where that is a terminal; where it is closed, nobody wants to know.
pub fn note(text: impl std::fmt::Display) {
    let mut err = std::io::stderr();
    let _ = writeln!(err, "{}", shown(&text.to_string(), err.is_terminal()));
}

/// A text as a stream is given it. Names, messages and output of others are in nearly everything that is printed, and must
/// not steer a terminal.
fn shown(text: &str, on_terminal: bool) -> Cow<'_, str> {
    if !on_terminal {
        return Cow::Borrowed(text);
    }
    let mut neutral = Neutral::default();
    Cow::Owned(neutral.push(text.as_bytes()) + &neutral.finish())
}

/// Whether standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard error is a terminal that can move its cursor.
pub fn stderr_is_live() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Colours, where they may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colours {
    on: bool,
}

impl Colours {
    /// No colours.
    #[cfg(test)]
    pub const OFF: Self = Self { on: false };

    /// For a stream that is, or is not, a terminal (no-color.org; a terminal may also be too dumb for them).
    pub fn for_stream(is_terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { on: is_terminal && !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb") }
    }

    /// Whether they may be used.
    pub const fn are_on(self) -> bool {
        self.on
    }

    fn paint(self, sgr: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{sgr}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Something new or good.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Something gone or bad.
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Something that changed or needs a look.
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something by the side.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// One of six, the same for the same number.
    pub fn nth(self, number: usize, text: &str) -> String {
        self.paint(&(31 + number % 6).to_string(), text)
    }
}

/// A table without lines; columns keep their width from one print to the next as far as they can.
#[derive(Debug, Default)]
pub struct Columns {
    widths: Vec<u16>,
}

impl Columns {
    /// Whether nothing was rendered in them yet.
    pub fn is_new(&self) -> bool {
        self.widths.is_empty()
    }

    /// The rows as text, one line each.
    pub fn render(&mut self, header: Option<&[&str]>, rows: &[Vec<String>]) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if let Some(header) = header {
            table.set_header(header.to_vec());
        }
        table.add_rows(rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect::<Vec<_>>()));
        let needed = table.column_max_content_widths();
        self.widths.resize(self.widths.len().max(needed.len()), 0);
        for (kept, needed) in self.widths.iter_mut().zip(needed) {
            *kept = (*kept).max(needed);
        }
        for (column, width) in table.column_iter_mut().zip(&self.widths) {
            column.set_padding((0, COLUMN_GAP));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + COLUMN_GAP)));
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A cell in one line; a table is broken by more.
fn one_line(cell: &str) -> String {
    super::text::harmless(cell).replace('\t', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn tables_have_neither_lines_nor_trailing_spaces() {
        let text = Columns::default().render(Some(&["NAME", "READY"]), &[row(&["demo", "3/3"]), row(&["longer", ""])]);
        assert_eq!(text, "NAME     READY\ndemo     3/3\nlonger\n");
    }

    #[test]
    fn later_rows_line_up_with_earlier_ones() {
        let mut columns = Columns::default();
        columns.render(Some(&["NAME", "READY"]), &[row(&["longer", "3/3"])]);
        assert_eq!(columns.render(None, &[row(&["a", "1/3"])]), "a        1/3\n");
    }

    #[test]
    fn a_cell_can_neither_break_the_table_nor_steer_the_terminal() {
        let text = Columns::default().render(None, &[row(&["a\nb\u{1b}[2J", "c"])]);
        assert_eq!(text, "a b\\u{1b}[2J   c\n");
    }

    #[test]
    fn a_terminal_gets_no_sequence_but_colours_and_a_pipe_gets_every_byte() {
        let text = "\u{1b}[32mgreen\u{1b}[0m\n\u{1b}]0;title\u{7}\n";
        assert_eq!(shown(text, false), text);
        assert_eq!(shown(text, true), "\u{1b}[32mgreen\u{1b}[0m\n\\u{1b}]0;title\\u{7}\n\u{1b}[0m");
    }

    #[test]
    fn colours_are_left_out_where_there_is_no_terminal() {
        assert_eq!(Colours::OFF.red("x"), "x");
        assert_eq!(Colours::for_stream(false), Colours::OFF);
    }
}
