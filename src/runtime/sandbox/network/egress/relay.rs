//! Handing on what two connections say to each other, in threads: what is said first may have to be looked at.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::thread;

use rustix::net::sockopt::set_socket_keepalive;

/// Stack of a thread that hands on: a buffer of 8 KiB and little else.
const STACK: usize = 128 << 10;

/// Hands on until both sides ended, each after the other where only one does. Takes two threads, this one included.
///
/// # Errors
/// No thread is left.
pub fn relay(one: &TcpStream, other: &TcpStream) -> io::Result<()> {
    relay_after(one, other, || Ok(()))
}

/// The same, where the first side is handed on only after this went well; what the other one says is handed on at once.
///
/// # Errors
/// No thread is left.
pub fn relay_after(one: &TcpStream, other: &TcpStream, first: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // Peers that vanish without a word are noticed in the end.
    for stream in [one, other] {
        let _ = set_socket_keepalive(stream, true);
        let _ = stream.set_nodelay(true);
    }
    thread::scope(|scope| {
        let back = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || pass(other, one));
        match back {
            Ok(_) => {
                match first() {
                    Ok(()) => pass(one, other),
                    Err(_) => end(one, other),
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    })
}

/// Hands on in one direction, up to the end of it.
fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    match io::copy(&mut from, &mut to) {
        // The other direction may go on.
        Ok(_) => drop(to.shutdown(Shutdown::Write)),
        Err(_) => end(from, to),
    }
}

fn end(one: &TcpStream, other: &TcpStream) {
    let _ = (one.shutdown(Shutdown::Both), other.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn one_side_may_end_before_the_other_answers() {
        let ((mut client, near), (far, mut server)) = (connected(), connected());
        let relaying = thread::spawn(move || relay(&near, &far).unwrap());
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).unwrap();
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        relaying.join().unwrap();
    }
}
