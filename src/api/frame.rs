//! Frames of the streams of exec and attach.
//!
//! A frame is its length (four bytes, big endian), one byte for its kind, and the rest. The length counts the kind
//! and the rest.
//!
//! | kind | way | rest |
//! |---|---|---|
//! | 0 start | up, first | JSON of [`ExecStart`](super::ExecStart) or [`AttachStart`](super::AttachStart) |
//! | 1 stdin | up | bytes |
//! | 2 resize | up | columns and rows, two bytes each, big endian |
//! | 3 stdout | down | bytes |
//! | 4 stderr | down | bytes |
//! | 5 exit | down, last | exit code, four bytes, big endian |
//! | 6 error | down, last | JSON of `ErrorBody` |
//! | 7 attached | down, first of an attach | JSON of [`Attached`](super::Attached) |
//!
//! The head of the answer comes before the start frame, which is sent after it: what nobody took up was not started, and can
//! be asked of another controller. The end of the request's body is the end of standard input. The end of the connection
//! ends a command, and detaches.

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use tokio_util::codec::{Decoder, LengthDelimitedCodec};

use super::{ApiError, ErrorBody};

/// Most bytes of one frame: a pipe's capacity on Linux (pipe(7)) and room for a command line in the first frame
/// (execve(2) takes 128 KiB per argument).
pub const MAX_FRAME: usize = 1 << 20;

/// Most bytes of output in one frame: what its kind leaves.
const MOST_OUTPUT: usize = MAX_FRAME - 1;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What to run.
    Start(Bytes),
    /// Standard input.
    Stdin(Bytes),
    /// The terminal has this size, columns and rows.
    Resize(u16, u16),
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The command ended with this code.
    Exit(i32),
    /// The command can't go on.
    Error(Bytes),
    /// What was attached to.
    Attached(Bytes),
}

impl Frame {
    /// An error frame.
    pub fn error(error: &ApiError) -> Self {
        Self::Error(serde_json::to_vec(&error.body()).unwrap_or_default().into())
    }

    /// The error that an error frame holds.
    pub fn read_error(payload: &[u8]) -> ApiError {
        serde_json::from_slice::<ErrorBody>(payload)
            .map_or_else(|_| ApiError::transport("the controller sent an error that can't be read"), ApiError::from)
    }

    /// The bytes to send for output of any size: as many frames as it takes, and one where it is empty.
    pub fn encode_output(frame: impl Fn(Bytes) -> Self, mut output: Bytes) -> Bytes {
        if output.len() <= MOST_OUTPUT {
            return frame(output).encode();
        }
        let mut out = BytesMut::with_capacity(output.len() + 5 * output.len().div_ceil(MOST_OUTPUT));
        while !output.is_empty() {
            let piece = output.split_to(output.len().min(MOST_OUTPUT));
            out.extend_from_slice(&frame(piece).encode());
        }
        out.freeze()
    }

    /// The bytes to send. A frame of more than [`MAX_FRAME`] bytes is refused by who reads it.
    pub fn encode(&self) -> Bytes {
        let (kind, rest): (u8, Bytes) = match self {
            Self::Start(bytes) => (0, bytes.clone()),
            Self::Stdin(bytes) => (1, bytes.clone()),
            Self::Resize(columns, rows) => (2, [columns.to_be_bytes(), rows.to_be_bytes()].concat().into()),
            Self::Stdout(bytes) => (3, bytes.clone()),
            Self::Stderr(bytes) => (4, bytes.clone()),
            Self::Exit(code) => (5, code.to_be_bytes().to_vec().into()),
            Self::Error(bytes) => (6, bytes.clone()),
            Self::Attached(bytes) => (7, bytes.clone()),
        };
        let mut out = BytesMut::with_capacity(5 + rest.len());
        out.put_u32(u32::try_from(rest.len() + 1).unwrap_or(u32::MAX));
        out.put_u8(kind);
        out.put(rest);
        out.freeze()
    }

    fn parse(mut frame: Bytes) -> Option<Self> {
        let kind = *frame.first()?;
        let rest = frame.split_off(1);
        Some(match kind {
            0 => Self::Start(rest),
            1 => Self::Stdin(rest),
            2 => {
                let (columns, rows) = rest.split_at_checked(2)?;
                Self::Resize(u16::from_be_bytes(columns.try_into().ok()?), u16::from_be_bytes(rows.try_into().ok()?))
            }
            3 => Self::Stdout(rest),
            4 => Self::Stderr(rest),
            5 => Self::Exit(i32::from_be_bytes(rest.as_ref().try_into().ok()?)),
            6 => Self::Error(rest),
            7 => Self::Attached(rest),
            _ => return None,
        })
    }
}

/// The frames of a body; ends after the first error.
pub fn frames(body: Body) -> impl Stream<Item = Result<Frame, ApiError>> + Send + 'static {
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec();
    let start = Reader { body: body.into_data_stream(), buffer: BytesMut::new(), codec };
    stream::unfold(Some(start), |reader| async move {
        let mut reader = reader?;
        match reader.next().await? {
            Ok(frame) => Some((Ok(frame), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

struct Reader {
    body: axum::body::BodyDataStream,
    buffer: BytesMut,
    codec: LengthDelimitedCodec,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Frame, ApiError>> {
        loop {
            match self.codec.decode(&mut self.buffer) {
                Ok(Some(frame)) => {
                    let frame = Frame::parse(frame.freeze());
                    return Some(frame.ok_or_else(|| ApiError::transport("the stream of frames holds an unknown one")));
                }
                Ok(None) => {}
                Err(error) => {
                    return Some(Err(ApiError::transport(format!("the stream of frames is broken: {error}"))));
                }
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    return Some(Err(ApiError::ended(format!("the stream of frames broke off: {error}"))));
                }
                None if self.buffer.is_empty() => return None,
                None => return Some(Err(ApiError::transport("the stream ends inside a frame"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Start(Bytes::from_static(b"{}")),
            Frame::Stdin(Bytes::from_static(b"in")),
            Frame::Resize(80, 24),
            Frame::Stdout(Bytes::from_static(b"out")),
            Frame::Stderr(Bytes::new()),
            Frame::Exit(-1),
            Frame::error(&ApiError::transport("x")),
        ]
    }

    async fn read(chunks: Vec<Bytes>) -> Vec<Result<Frame, ApiError>> {
        let body = Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)));
        frames(body).collect().await
    }

    #[tokio::test]
    async fn frames_survive_any_cutting_of_the_stream() {
        let bytes: Vec<u8> = all().iter().flat_map(|frame| frame.encode().to_vec()).collect();
        for size in [1, 2, 3, 7, bytes.len()] {
            let chunks = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            let read: Vec<Frame> = read(chunks).await.into_iter().map(Result::unwrap).collect();
            assert_eq!(read, all(), "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn output_of_any_size_is_read_back() {
        for size in [0, 1, MOST_OUTPUT, MOST_OUTPUT + 1, 2 * MAX_FRAME] {
            let output: Bytes = (0..size).map(|at| (at % 251) as u8).collect();
            let sent = Frame::encode_output(Frame::Stderr, output.clone());
            let pieces = read(vec![sent]).await.into_iter().map(|frame| match frame {
                Ok(Frame::Stderr(piece)) => piece,
                other => panic!("{other:?}"),
            });
            assert!(pieces.collect::<Vec<_>>().concat() == output, "{size} bytes");
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error() {
        let read = read(vec![Frame::Exit(0).encode().slice(..6)]).await;
        assert_eq!(read, [Err(ApiError::transport("the stream ends inside a frame"))]);
    }

    #[tokio::test]
    async fn a_frame_beyond_the_bound_is_refused_before_it_is_read() {
        let read = read(vec![Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 1])]).await;
        assert!(matches!(read.as_slice(), [Err(error)] if error.kind == super::super::Kind::Transport), "{read:?}");
    }
}
