//! Output of containers, line by line.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::query_parameters::LogsOptionsBuilder;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::BoxStream;

use super::engine::{CallError, READ_DEADLINE};
use super::error::{explain, is_missing, words};
use super::ping::Product;
use super::raw::Records;
use super::readers::Following;
use super::{DockerRuntime, Inner};
use crate::runtime::io::{LogLine, LogOptions, Logs, OutputStream};
use crate::runtime::logline::Pieces;
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::InstanceRef;

#[async_trait]
impl Logs for DockerRuntime {
    async fn logs(&self, instance: &InstanceRef, options: &LogOptions) -> Result<BoxStream<'static, Result<LogLine>>> {
        self.inner.logs(instance, *options).await
    }
}

impl Inner {
    async fn logs(
        self: &Arc<Self>,
        instance: &InstanceRef,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine>>> {
        let what = format!("reading the logs of {}", instance.id);
        self.engine.answers(&what).await?;
        if self.look(instance).await?.is_none() {
            return Err(RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist")));
        }
        let found = self.inspection(&instance.runtime_id).await.map_err(|error| error.explain(&what))?;
        let is_terminal = found.config.and_then(|config| config.tty) == Some(true);
        let source = Source { inner: self.clone(), container: instance.runtime_id.clone(), is_terminal };
        let frames = source.frames(&options).await.map_err(|error| error.explain(&what))?;
        let again = (options.follow && self.engine.product().await? == Product::Docker).then_some(source);
        let following = options.follow.then(|| self.readers.follow(&instance.runtime_id));
        let (lines, ready) = (Lines { is_terminal, ..Lines::default() }, VecDeque::new());
        // Where no line is wanted that was there before, nothing before now is read once more either.
        let after = options.tail.filter(|tail| *tail == 0).map(|_| Utc::now());
        let reader = Reader { frames, lines, ready, options, after, again, following, failed: None, what };
        Ok(futures::stream::unfold(reader, |mut reader| async { reader.next().await.map(|line| (line, reader)) })
            .boxed())
    }
}

/// Whether the engine answered that the container is gone, or about to be.
fn is_removed(error: &Error) -> bool {
    is_missing(error) || words(error).contains("dead or marked for removal")
}

type Frames = BoxStream<'static, std::result::Result<LogOutput, Error>>;

/// Where lines come from.
struct Source {
    inner: Arc<Inner>,
    container: String,
    /// Whether the container has a terminal, whose output comes without frames.
    is_terminal: bool,
}

impl Source {
    async fn frames(&self, options: &LogOptions) -> std::result::Result<Frames, CallError> {
        let tail = options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        // The engine takes whole seconds; the rest is cut off by the reader.
        let since = options.since.and_then(|since| i32::try_from(since.timestamp()).ok()).unwrap_or(0);
        if self.is_terminal {
            let follow = options.follow;
            let path = format!(
                "/containers/{}/logs?stdout=true&stderr=true&timestamps=true&follow={follow}&tail={tail}&since={since}",
                self.container
            );
            return Ok(records(self.inner.engine.stream(&path).await?));
        }
        let query = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .follow(options.follow)
            .tail(&tail)
            .since(since)
            .build();
        Ok(self.inner.engine.client().await?.logs(&self.container, Some(query)).boxed())
    }
}

/// The records in a stream of bytes.
fn records(bytes: BoxStream<'static, std::result::Result<bytes::Bytes, Error>>) -> Frames {
    let cut = bytes.map(Some).chain(futures::stream::iter([None])).scan(Records::default(), |records, piece| {
        let found: Vec<std::result::Result<LogOutput, Error>> = match piece {
            Some(Ok(bytes)) => records.push(&bytes).into_iter().map(Ok).collect(),
            Some(Err(error)) => records.finish().into_iter().map(Ok).chain([Err(error)]).collect(),
            None => records.finish().into_iter().map(Ok).collect(),
        };
        std::future::ready(Some(found))
    });
    cut.map(futures::stream::iter).flatten().boxed()
}

/// Reads frames and gives lines.
struct Reader {
    frames: Frames,
    lines: Lines,
    /// Bounded by what one frame holds.
    ready: VecDeque<LogLine>,
    options: LogOptions,
    /// When the last line that was given, or is not wanted, was written.
    after: Option<DateTime<Utc>>,
    /// To read once more after following: Docker ends a stream that follows before it passes on what a process wrote
    /// last without a line break.
    again: Option<Source>,
    /// Present where it was asked to follow.
    following: Option<Following>,
    /// How reading failed.
    failed: Option<RuntimeError>,
    what: String,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<LogLine>> {
        loop {
            while let Some(line) = self.ready.pop_front() {
                if self.options.since.is_none_or(|since| line.at >= since) {
                    self.after = Some(line.at);
                    return Some(Ok(line));
                }
            }
            match self.frame().await {
                Some(Ok(frame)) => self.lines.push(frame, &mut self.ready),
                // Its container has ended, and is on its way out.
                Some(Err(error)) if self.following.is_some() && is_removed(&error) => self.end(),
                // Told after the part of a line that came before it.
                Some(Err(error)) => {
                    self.end();
                    self.failed = Some(explain(&self.what, &error));
                }
                None => {
                    // What is read once more goes on with a line that has not ended.
                    if self.again.is_none() {
                        self.lines.finish(&mut self.ready);
                    }
                    if self.ready.is_empty() {
                        if let Some(error) = self.failed.take() {
                            return Some(Err(error));
                        }
                        self.read_again().await?;
                    }
                }
            }
        }
    }

    /// Goes on after the end of a stream that followed; `None` where there is nothing more to read.
    async fn read_again(&mut self) -> Option<()> {
        let Some(source) = self.again.take() else {
            self.end();
            return None;
        };
        let since = self.lines.onward(self.after).or(self.options.since);
        let options = LogOptions { tail: None, follow: false, since };
        match source.frames(&options).await {
            Ok(frames) => {
                self.options = options;
                self.lines.rewind(self.after);
                self.frames = frames;
            }
            // Its container has ended, and is gone.
            Err(error) if error.is_missing() => self.end(),
            Err(error) => {
                self.end();
                self.failed = Some(error.explain(&self.what));
            }
        }
        Some(())
    }

    fn end(&mut self) {
        self.again = None;
        self.frames = futures::stream::empty().boxed();
    }

    /// The next frame. A reader that follows may wait for ever; one that does not is reading what is there.
    async fn frame(&mut self) -> Option<std::result::Result<LogOutput, Error>> {
        if self.options.follow {
            return self.frames.next().await;
        }
        let waited = tokio::time::timeout(READ_DEADLINE, self.frames.next()).await;
        waited.unwrap_or(Some(Err(Error::RequestTimeoutError)))
    }
}

/// Puts lines together: one frame may hold a part of a line or several of them.
#[derive(Debug, Default)]
struct Lines {
    /// Whether a terminal wrote them, which ends each with a carriage return and a line break.
    is_terminal: bool,
    stdout: Side,
    stderr: Side,
    /// Of what comes once more, the lines up to then were given.
    after: Option<DateTime<Utc>>,
}

/// What there is of one stream.
#[derive(Debug, Default)]
struct Side {
    /// The line that has not ended yet.
    open: Option<Part>,
    /// When a line that comes once more was written, and how many of its bytes were given.
    begun: Option<(DateTime<Utc>, usize)>,
}

/// A line that has not ended yet.
#[derive(Debug)]
struct Part {
    at: DateTime<Utc>,
    pieces: Pieces,
    /// Bytes that were given in pieces, those of earlier readings too.
    given: usize,
    /// Bytes that come once more.
    repeated: usize,
    /// Whether it was not given before.
    is_new: bool,
}

impl Lines {
    fn push(&mut self, frame: LogOutput, ready: &mut VecDeque<LogLine>) {
        let (stream, message) = match frame {
            LogOutput::StdErr { message } => (OutputStream::Stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => {
                (OutputStream::Stdout, message)
            }
        };
        for piece in message.split_inclusive(|byte| *byte == b'\n') {
            self.piece(stream, piece, ready);
        }
    }

    /// Takes a piece that ends with a line break or is a part of a line. Each begins with the time.
    fn piece(&mut self, stream: OutputStream, piece: &[u8], ready: &mut VecDeque<LogLine>) {
        let (at, text) = timed(piece);
        let ended = text.last() == Some(&b'\n');
        let text = if ended { &text[..text.len() - 1] } else { text };
        let (is_terminal, after) = (self.is_terminal, self.after);
        let side = self.side(stream);
        let part = side.open.get_or_insert_with(|| {
            let at = at.unwrap_or_else(Utc::now);
            let begun = side.begun.take_if(|(begun, _)| *begun == at);
            let given = begun.map_or(0, |(_, given)| given);
            let is_new = begun.is_some() || after.is_none_or(|after| at > after);
            Part { at, pieces: Pieces::default(), given, repeated: given, is_new }
        });
        ready.extend(part.push(stream, text));
        if ended {
            ready.extend(side.open.take().and_then(|part| part.end(stream, is_terminal)));
        }
    }

    /// Gives what never ended with a line break.
    fn finish(&mut self, ready: &mut VecDeque<LogLine>) {
        let is_terminal = self.is_terminal;
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            ready.extend(self.side(stream).open.take().and_then(|part| part.end(stream, is_terminal)));
        }
    }

    /// From when on what comes is read once more, where the last line that was given is of this time: from the begin of
    /// the lines that have not ended.
    fn onward(&self, after: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        // The smallest step of the engine's clock.
        let after = after.map(|after| after + chrono::Duration::nanoseconds(1));
        let open = [&self.stdout, &self.stderr].into_iter().filter_map(|side| side.open.as_ref().map(|part| part.at));
        open.chain(after).min()
    }

    /// Prepares for what comes once more, so that nothing is given twice.
    fn rewind(&mut self, after: Option<DateTime<Utc>>) {
        self.after = after;
        for side in [&mut self.stdout, &mut self.stderr] {
            side.begun = side.open.take().map(|part| (part.at, part.given));
        }
    }

    const fn side(&mut self, stream: OutputStream) -> &mut Side {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }
}

impl Part {
    /// Takes more of the line; gives the pieces that are complete.
    fn push(&mut self, stream: OutputStream, text: &[u8]) -> Vec<LogLine> {
        let repeated = self.repeated.min(text.len());
        self.repeated -= repeated;
        let (at, is_new) = (self.at, self.is_new);
        let pieces = self.pieces.push(text.get(repeated..).filter(|_| is_new).unwrap_or_default());
        self.given += pieces.iter().map(|piece| piece.as_bytes().len()).sum::<usize>();
        pieces.into_iter().map(|text| LogLine { at, stream, text, goes_on: true }).collect()
    }

    fn end(mut self, stream: OutputStream, is_terminal: bool) -> Option<LogLine> {
        let mut text = self.pieces.end();
        // A terminal ends its lines with both.
        if is_terminal && text.last() == Some(&b'\r') {
            text.pop();
        }
        self.is_new.then(|| LogLine { at: self.at, stream, text: text.into(), goes_on: false })
    }
}

/// The time that a piece begins with, and the rest.
fn timed(piece: &[u8]) -> (Option<DateTime<Utc>>, &[u8]) {
    let split = piece.iter().position(|byte| *byte == b' ').and_then(|end| {
        let text = std::str::from_utf8(piece.get(..end)?).ok()?;
        let at = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
        Some((at, piece.get(end + 1..)?))
    });
    match split {
        Some((at, rest)) => (Some(at), rest),
        None => (None, piece),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::runtime::io::LONGEST_LINE;

    /// The lines of what came on two streams, or of a terminal.
    fn lines(is_terminal: bool, frames: &[(OutputStream, &[u8])]) -> Vec<(OutputStream, Vec<u8>, bool)> {
        let (mut lines, mut ready) = (Lines { is_terminal, ..Lines::default() }, VecDeque::new());
        for (stream, text) in frames {
            let message = Bytes::copy_from_slice(text);
            let frame = match stream {
                OutputStream::Stdout => LogOutput::StdOut { message },
                OutputStream::Stderr => LogOutput::StdErr { message },
            };
            lines.push(frame, &mut ready);
        }
        lines.finish(&mut ready);
        ready.into_iter().map(|line| (line.stream, line.text.as_bytes().to_vec(), line.goes_on)).collect()
    }

    const T: &str = "2026-11-21T02:00:00.000000001Z";

    /// Texts after their time.
    fn stamped(texts: &[&[u8]]) -> Vec<u8> {
        texts.iter().flat_map(|text| [T.as_bytes(), b" ", text].concat()).collect()
    }

    #[test]
    fn parts_of_a_line_are_joined_on_each_stream_byte_for_byte() {
        use OutputStream::{Stderr, Stdout};
        let frames = [
            (Stdout, stamped(&[b"one "])),
            (Stderr, stamped(&[b"other\xff\n"])),
            (Stdout, stamped(&[b"two\n", b"three\r\n"])),
            (Stdout, stamped(&[b"no end"])),
        ];
        let frames: Vec<_> = frames.iter().map(|(stream, text)| (*stream, text.as_slice())).collect();
        let text = |stream, text: &[u8]| (stream, text.to_vec(), false);
        let expected =
            [text(Stderr, b"other\xff"), text(Stdout, b"one two"), text(Stdout, b"three\r"), text(Stdout, b"no end")];
        assert_eq!(lines(false, &frames), expected);
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let part = stamped(&[&vec![b'x'; LONGEST_LINE]]);
        let found = lines(false, &[(OutputStream::Stdout, &part), (OutputStream::Stdout, &part)]);
        let shape: Vec<_> = found.iter().map(|(_, text, goes_on)| (text.len(), *goes_on)).collect();
        assert_eq!(shape, [(LONGEST_LINE, true), (LONGEST_LINE, false)]);
    }

    #[tokio::test]
    async fn what_came_before_an_error_is_given_before_it() {
        let pieces = [Ok(Bytes::from(format!("{T} whole\n{T} part"))), Err(Error::RequestTimeoutError)];
        let frames: Vec<_> = records(futures::stream::iter(pieces).boxed()).collect().await;
        let told: Vec<_> =
            frames.iter().map(|frame| frame.as_ref().map(|frame| frame.as_ref().to_vec()).ok()).collect();
        let text = |text: &str| Some(format!("{T} {text}").into_bytes());
        assert_eq!(told, [text("whole\n"), text("part"), None]);
        let mut reader = Reader {
            frames: futures::stream::iter(frames).boxed(),
            lines: Lines::default(),
            ready: VecDeque::new(),
            options: LogOptions::default(),
            after: None,
            again: None,
            following: None,
            failed: None,
            what: "reading".to_owned(),
        };
        let mut read = Vec::new();
        while let Some(line) = reader.next().await {
            read.push(line.map(|line| line.text).map_err(|error| error.kind));
        }
        assert_eq!(read, [Ok("whole".into()), Ok("part".into()), Err(ErrorKind::Timeout)]);
    }

    #[test]
    fn what_is_read_once_more_goes_on_where_a_line_had_not_ended_and_repeats_nothing() {
        let [early, late, later] = [1, 2, 3].map(|second| format!("2026-11-21T02:00:0{second}Z"));
        let long = format!("{early} ab{}", "x".repeat(LONGEST_LINE));
        let out = |text: &str| LogOutput::StdOut { message: Bytes::copy_from_slice(text.as_bytes()) };
        let error = |text: &str| LogOutput::StdErr { message: Bytes::copy_from_slice(text.as_bytes()) };
        let (mut lines, mut ready) = (Lines::default(), VecDeque::new());
        for frame in [out(&format!("{T} old\n")), out(&long), error(&format!("{late} oh\n"))] {
            lines.push(frame, &mut ready);
        }
        let after = ready.iter().map(|line| line.at).max();
        assert_eq!(lines.onward(after), early.parse().ok(), "the begin of the line that has not ended");
        lines.rewind(after);
        let rest = [out(&format!("{early} y\n")), error(&format!("{late} oh\n")), out(&format!("{later} end"))];
        for frame in [out(&long)].into_iter().chain(rest) {
            lines.push(frame, &mut ready);
        }
        lines.finish(&mut ready);
        let told: Vec<_> = ready.iter().map(|line| (line.text.lossy().into_owned(), line.goes_on)).collect();
        let text = |text: &str| (text.to_owned(), false);
        let first = (format!("ab{}", "x".repeat(LONGEST_LINE - 2)), true);
        assert_eq!(told, [text("old"), first, text("oh"), text("xxy"), text("end")]);
    }

    #[test]
    fn the_line_break_of_a_terminal_is_cut_off() {
        let longest = vec![b'x'; LONGEST_LINE];
        let text = stamped(&[b"x\r\n", &[&longest[..], b"\r\n"].concat()]);
        let found = lines(true, &[(OutputStream::Stdout, &text)]);
        let found: Vec<_> = found.iter().map(|(_, text, goes_on)| (text.as_slice(), *goes_on)).collect();
        assert_eq!(found, [(&b"x"[..], false), (&longest, true), (b"", false)]);
    }
}
