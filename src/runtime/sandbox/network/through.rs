//! Handing on what two connections say to each other without a thread for it: thousands that say nothing take a kilobyte
//! each.

use std::io::{self, ErrorKind};

use rustix::net::sockopt::set_socket_keepalive;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

/// Most bytes that are handed on at a time. They are on the stack only while they are, so that a connection that says
/// nothing has no buffer.
const PIECE: usize = 16 << 10;

/// What came of one piece.
enum Piece {
    /// All of it was handed on.
    Whole,
    /// The other side does not take these bytes yet.
    Rest(Vec<u8>),
    /// Nothing more comes.
    End,
}

/// Hands on until both sides ended, each after the other where only one does.
pub async fn hand_on(one: &TcpStream, other: &TcpStream) {
    // Peers that vanish without a word are noticed in the end.
    for stream in [one, other] {
        let _ = set_socket_keepalive(stream, true);
        let _ = stream.set_nodelay(true);
    }
    tokio::join!(pass(one, other), pass(other, one));
}

/// Hands on in one direction, up to the end of it.
async fn pass(from: &TcpStream, to: &TcpStream) {
    match copy(from, to).await {
        // The other direction may go on.
        Ok(()) => drop(shutdown(to, Shutdown::Write)),
        Err(_) => drop((shutdown(from, Shutdown::Both), shutdown(to, Shutdown::Both))),
    }
}

async fn copy(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    loop {
        from.readable().await?;
        match piece(from, to) {
            Ok(Piece::Whole) => {}
            Ok(Piece::Rest(rest)) => write_all(to, &rest).await?,
            Ok(Piece::End) => return Ok(()),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        // One that always has something to say leaves the others their turn.
        consume_budget().await;
    }
}

/// Hands on what is there at once.
fn piece(from: &TcpStream, to: &TcpStream) -> io::Result<Piece> {
    let mut buffer = [0; PIECE];
    let size = from.try_read(&mut buffer)?;
    let said = buffer.get(..size).unwrap_or_default();
    if said.is_empty() {
        return Ok(Piece::End);
    }
    let taken = match to.try_write(said) {
        Err(error) if is_transient(&error) => 0,
        written => written?,
    };
    match said.get(taken..).unwrap_or_default() {
        [] => Ok(Piece::Whole),
        rest => Ok(Piece::Rest(rest.to_owned())),
    }
}

async fn write_all(to: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (one, listener.accept().await.unwrap().0)
    }

    /// A client and a server between whom everything is handed on.
    async fn handed_on() -> (TcpStream, TcpStream, tokio::task::JoinHandle<()>) {
        let ((client, near), (far, server)) = (connected().await, connected().await);
        (client, server, tokio::spawn(async move { hand_on(&near, &far).await }))
    }

    #[tokio::test]
    async fn one_side_may_end_before_the_other_answers() {
        let (mut client, mut server, handing) = handed_on().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        handing.await.unwrap();
    }

    #[tokio::test]
    async fn what_a_slow_side_does_not_take_yet_waits_and_stays_whole() {
        let (mut client, mut server, handing) = handed_on().await;
        let said: Vec<u8> = (0..8u32 << 20).map(|number| number.to_le_bytes()[number as usize % 3]).collect();
        let writing = tokio::spawn({
            let said = said.clone();
            async move {
                client.write_all(&said).await.unwrap();
                client
            }
        });
        // Until both kernels' buffers are full nobody reads.
        tokio::task::yield_now().await;
        let mut heard = vec![0; said.len()];
        server.read_exact(&mut heard).await.unwrap();
        assert!(heard == said);
        drop((writing.await.unwrap(), server));
        handing.await.unwrap();
    }

    #[tokio::test]
    async fn a_side_that_breaks_off_ends_the_other() {
        let (client, mut server, handing) = handed_on().await;
        // What it never read makes its end a reset.
        server.write_all(b"unread").await.unwrap();
        client.peek(&mut [0]).await.unwrap();
        rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert!(matches!(server.read(&mut [0]).await, Ok(0) | Err(_)));
        handing.await.unwrap();
    }
}
