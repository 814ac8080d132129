//! Text for people: ages, and output of programs made harmless for a terminal.

use std::time::Duration;

/// An age in at most two units, as kubectl prints it: `45s`, `4m5s`, `90m`, `3h5m`, `30h`, `3d4h`, `200d`, `2y40d`.
pub fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let pair = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => pair(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () => pair(days / 365, "y", days % 365, "d"),
    }
}

/// The length of time that an option names: `500ms`, `1m30s`, `2h`.
///
/// # Errors
/// It is none; what to write.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a duration such as 5m".to_owned())
}

/// A text that can't steer a terminal: colours (SGR sequences) stay and are reset at the end, line breaks become
/// spaces, every other control character is spelled out.
pub fn harmless(text: &str) -> String {
    if !text.chars().any(is_steering) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    let mut coloured = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(length) = colour_sequence(rest) {
            out.push_str(rest.get(..length).unwrap_or_default());
            coloured = true;
            rest = rest.get(length..).unwrap_or_default();
            continue;
        }
        match c {
            '\t' => out.push('\t'),
            '\n' => out.push(' '),
            '\r' if rest.len() == 1 => {}
            c if is_steering(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    if coloured {
        out.push_str("\u{1b}[0m");
    }
    out
}

/// Length of the SGR sequence (ECMA-48: `ESC [`, digits, `;` and `:`, `m`) that a text begins with.
pub fn colour_sequence(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    parameters.get(end..)?.starts_with('m').then_some(2 + end + 1)
}

/// Whether a character steers a terminal, or makes a line read as another one.
pub fn is_steering(c: char) -> bool {
    c.is_control() || is_bidi_control(c)
}

/// Characters that turn the direction of text around and can make a line read as another one (Unicode UAX 9).
const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `1 instance`, `3 instances`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A number of bytes as people read it, in binary units with at most one decimal: `12Mi`, `1.5Ki`, `10`.
pub fn size(bytes: u64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let Some((unit, bits)) = units.into_iter().find(|(_, bits)| bytes >> bits > 0) else { return bytes.to_string() };
    let tenths = (u128::from(bytes) * 10) >> bits;
    match (tenths / 10, tenths % 10) {
        (whole, tenth) if whole < 10 && tenth > 0 => format!("{whole}.{tenth}{unit}"),
        (whole, _) => format!("{whole}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_at_most_two_units() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (245, "4m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (3 * 3_600 + 300, "3h5m"),
            (8 * 3_600, "8h"),
            (47 * 3_600, "47h"),
            (3 * 86_400 + 4 * 3_600, "3d4h"),
            (2 * 86_400, "2d"),
            (200 * 86_400, "200d"),
            (770 * 86_400, "2y40d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(age(Duration::from_secs(seconds)), text, "{seconds} s");
        }
    }

    #[test]
    fn sizes_are_whole_or_have_one_decimal_below_ten() {
        let told = [0, 1023, 1024, 1536, 10 << 10, (64 << 20) + 1, 3 << 29, u64::MAX].map(size);
        assert_eq!(told, ["0", "1023", "1Ki", "1.5Ki", "10Ki", "64Mi", "1.5Gi", "16777215Ti"]);
    }

    #[test]
    fn sequences_that_steer_a_terminal_are_spelled_out() {
        assert_eq!(harmless("plain text"), "plain text");
        assert_eq!(harmless("a\tb\r"), "a\tb");
        assert_eq!(harmless("two\nlines"), "two lines");
        assert_eq!(harmless("\u{1b}[2Jgone"), "\\u{1b}[2Jgone");
        assert_eq!(harmless("\u{1b}]0;title\u{7}"), "\\u{1b}]0;title\\u{7}");
        assert_eq!(harmless("over\rwrite"), "over\\u{d}write");
        assert_eq!(harmless("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(harmless("\u{9b}31m"), "\\u{9b}31m");
    }

    #[test]
    fn colours_stay_and_end_with_the_line() {
        assert_eq!(harmless("\u{1b}[1;31mred"), "\u{1b}[1;31mred\u{1b}[0m");
        assert_eq!(harmless("\u{1b}[31"), "\\u{1b}[31");
    }
}
