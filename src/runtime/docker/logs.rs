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
use crate::runtime::io::{LONGEST_LINE, LogLine, LogOptions, Logs, OutputStream};
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
        let (lines, ready) = (Lines::default(), VecDeque::new());
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
                    self.lines.finish(&mut self.ready);
                    if self.ready.is_empty() {
                        if let Some(error) = self.failed.take() {
                            return Some(Err(error));
                        }
                        match self.read_again().await? {
                            Ok(()) => {}
                            Err(error) => return Some(Err(error)),
                        }
                    }
                }
            }
        }
    }

    /// Goes on after the end of a stream that followed; `None` where there is nothing more to read.
    async fn read_again(&mut self) -> Option<Result<()>> {
        let Some(source) = self.again.take() else {
            self.end();
            return None;
        };
        // The smallest step of the engine's clock, so that the last line is not given twice.
        let since = self.after.map(|after| after + chrono::Duration::nanoseconds(1)).or(self.options.since);
        self.options = LogOptions { tail: None, follow: false, since };
        Some(match source.frames(&self.options).await {
            Ok(frames) => {
                self.frames = frames;
                Ok(())
            }
            // Its container has ended, and is gone.
            Err(error) if error.is_missing() => {
                self.end();
                Ok(())
            }
            Err(error) => {
                self.end();
                Err(error.explain(&self.what))
            }
        })
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
    stdout: Option<Part>,
    stderr: Option<Part>,
}

/// A line that has not ended yet.
#[derive(Debug)]
struct Part {
    at: DateTime<Utc>,
    bytes: Vec<u8>,
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
        let open = self.open(stream);
        let part = open.get_or_insert_with(|| Part { at: at.unwrap_or_else(Utc::now), bytes: Vec::new() });
        part.bytes.extend_from_slice(text);
        if ended || part.bytes.len() >= LONGEST_LINE {
            ready.extend(open.take().map(|part| part.line(stream)));
        }
    }

    /// Gives what never ended with a line break.
    fn finish(&mut self, ready: &mut VecDeque<LogLine>) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            ready.extend(self.open(stream).take().map(|part| part.line(stream)));
        }
    }

    const fn open(&mut self, stream: OutputStream) -> &mut Option<Part> {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }
}

impl Part {
    fn line(self, stream: OutputStream) -> LogLine {
        let Self { at, bytes } = self;
        // A terminal ends its lines with both.
        let text = bytes.strip_suffix(b"\r").unwrap_or(&bytes);
        LogLine { at, stream, text: String::from_utf8_lossy(text).into_owned() }
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

    fn lines(frames: &[(OutputStream, &str)]) -> Vec<(OutputStream, String)> {
        let (mut lines, mut ready) = (Lines::default(), VecDeque::new());
        for (stream, text) in frames {
            let message = Bytes::copy_from_slice(text.as_bytes());
            let frame = match stream {
                OutputStream::Stdout => LogOutput::StdOut { message },
                OutputStream::Stderr => LogOutput::StdErr { message },
            };
            lines.push(frame, &mut ready);
        }
        lines.finish(&mut ready);
        ready.into_iter().map(|line| (line.stream, line.text)).collect()
    }

    const T: &str = "2026-11-21T02:00:00.000000001Z";

    #[test]
    fn parts_of_a_line_are_joined_on_each_stream() {
        use OutputStream::{Stderr, Stdout};
        let frames = [
            (Stdout, format!("{T} one ")),
            (Stderr, format!("{T} other\n")),
            (Stdout, format!("{T} two\n{T} three\n")),
            (Stdout, format!("{T} no end")),
        ];
        let frames: Vec<_> = frames.iter().map(|(stream, text)| (*stream, text.as_str())).collect();
        let text = |stream, text: &str| (stream, text.to_owned());
        assert_eq!(
            lines(&frames),
            [text(Stderr, "other"), text(Stdout, "one two"), text(Stdout, "three"), text(Stdout, "no end")]
        );
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let part = format!("{T} {}", "x".repeat(LONGEST_LINE));
        let found = lines(&[(OutputStream::Stdout, &part), (OutputStream::Stdout, &part)]);
        assert_eq!(found.iter().map(|(_, text)| text.len()).collect::<Vec<_>>(), [LONGEST_LINE, LONGEST_LINE]);
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
        assert_eq!(read, [Ok("whole".to_owned()), Ok("part".to_owned()), Err(ErrorKind::Timeout)]);
    }

    #[test]
    fn the_line_break_of_a_terminal_is_cut_off() {
        assert_eq!(lines(&[(OutputStream::Stdout, &format!("{T} x\r\n"))]), [(OutputStream::Stdout, "x".to_owned())]);
    }
}
