//! Output of a command on its way to whoever reads it, who may take any time.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::runtime::Result;
use crate::runtime::io::ExecOutput;

/// Largest piece of output: the capacity of a pipe.
pub const PIECE: usize = 64 << 10;
/// Time that is waited for more after the command ended, all waits together, where a process that it left behind holds
/// its output open.
pub const REST: Duration = Duration::from_secs(1);
/// Most bytes that are handed on after the command ended, give or take a piece: far more than pipes hold (a MiB each,
/// pipe(7)), and an end to a process that was left behind and writes on for ever.
const MOST_LEFT: usize = 16 << 20;

/// What comes out of a pipe; nothing where there is none.
pub fn pieces<R: AsyncRead + Unpin>(
    from: Option<R>,
    wrap: impl Fn(Bytes) -> ExecOutput,
) -> impl Stream<Item = ExecOutput> {
    let begun = from.map(|from| (from, vec![0; PIECE], wrap));
    stream::unfold(begun, |state| async {
        let (mut from, mut buffer, wrap) = state?;
        // A pipe that can't be read has ended.
        let size = from.read(&mut buffer).await.ok().filter(|size| *size > 0)?;
        let piece = wrap(Bytes::copy_from_slice(buffer.get(..size).unwrap_or_default()));
        Some((piece, Some((from, buffer, wrap))))
    })
}

/// Hands on what a command writes until `ended` tells of its end, and what is left of it then. Only waits in which nothing
/// comes in are bounded after the end: what was written before it is handed on, however slowly it is taken.
pub async fn hand_on<T>(
    pieces: impl Stream<Item = ExecOutput>,
    to: &mpsc::Sender<Result<ExecOutput>>,
    ended: impl Future<Output = T>,
) -> T {
    let (mut pieces, mut ended) = (pin!(pieces), pin!(ended));
    let end = loop {
        tokio::select! {
            biased;
            end = &mut ended => break end,
            piece = pieces.next() => match piece {
                // Where nobody takes it any more, the command is killed elsewhere.
                Some(piece) => drop(to.send(Ok(piece)).await),
                None => return ended.await,
            },
        }
    };
    let (mut patience, mut handed_on) = (REST, 0);
    while handed_on < MOST_LEFT {
        let asked = Instant::now();
        let Ok(Some(piece)) = timeout(patience, pieces.next()).await else { break };
        patience = patience.saturating_sub(asked.elapsed());
        handed_on += size(&piece);
        if to.send(Ok(piece)).await.is_err() {
            break;
        }
    }
    end
}

fn size(piece: &ExecOutput) -> usize {
    match piece {
        ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => bytes.len(),
        ExecOutput::Exit(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn piece(size: usize) -> ExecOutput {
        ExecOutput::Stdout(vec![b'x'; size].into())
    }

    /// How many bytes of the output of a command that has ended are taken by one who waits that long before each piece,
    /// and how long that took altogether.
    async fn taken(pieces: impl Stream<Item = ExecOutput> + Send + 'static, pause: Duration) -> (usize, Duration) {
        let (to, mut from) = mpsc::channel(1);
        let begun = Instant::now();
        let handing = tokio::spawn(async move { hand_on(pieces, &to, ready(7)).await });
        let mut bytes = 0;
        loop {
            tokio::time::sleep(pause).await;
            match from.recv().await {
                Some(piece) => bytes += size(&piece.unwrap()),
                None => break,
            }
        }
        assert_eq!(handing.await.unwrap(), 7);
        (bytes, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_command_wrote_is_handed_on_however_slowly_it_is_taken() {
        let written = stream::repeat_with(|| piece(10)).take(20);
        assert_eq!(taken(written, REST * 10).await.0, 200);
        let held_open = stream::repeat_with(|| piece(10)).take(20).chain(stream::pending());
        assert_eq!(taken(held_open, REST * 10).await.0, 200, "also where a process that was left behind holds it open");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_process_that_was_left_behind_writes_is_waited_for_only_so_long() {
        let (bytes, waited) = taken(stream::pending(), Duration::ZERO).await;
        assert!(bytes == 0 && waited >= REST && waited < REST * 2, "{bytes} {waited:?}");
        let now_and_then = stream::repeat(()).then(|()| async {
            tokio::time::sleep(REST * 2 / 5).await;
            piece(1)
        });
        assert_eq!(taken(now_and_then, Duration::ZERO).await.0, 2, "waits are counted together");
        let without_end = stream::repeat_with(|| piece(PIECE));
        assert_eq!(taken(without_end, Duration::ZERO).await.0, MOST_LEFT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_writes_nothing_more_is_waited_for() {
        let (to, mut from) = mpsc::channel(1);
        let late = async {
            tokio::time::sleep(REST * 100).await;
            3
        };
        assert_eq!(hand_on(stream::iter([piece(1)]), &to, late).await, 3);
        assert_eq!(from.try_recv().unwrap().unwrap(), piece(1));
        let never = hand_on(stream::pending(), &to, pending::<()>());
        assert!(timeout(REST * 100, never).await.is_err(), "a silent command goes on");
    }

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end() {
        let text = vec![b'y'; PIECE + 1];
        let read: Vec<_> = pieces(Some(&text[..]), ExecOutput::Stderr).collect().await;
        let expected = [&text[..PIECE], b"y"].map(|part| ExecOutput::Stderr(Bytes::copy_from_slice(part)));
        assert_eq!(read, expected);
        assert_eq!(pieces(None::<&[u8]>, ExecOutput::Stdout).count().await, 0);
    }
}
