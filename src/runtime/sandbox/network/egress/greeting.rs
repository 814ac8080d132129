//! What a client says first in a tunnel. Where it begins with TLS, the name of the server that it means is in the clear: a
//! front of many hosts answers by that name, so rules by name are asked about it too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustls::server::Acceptor;

use super::relay::relay_after;

/// Longest first message of TLS that is waited for, in bytes; clients send two kilobytes.
const LONGEST_HELLO: usize = 64 << 10;

/// A record of TLS that says `unrecognized_name` (RFC 6066, 3) and ends the connection.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 1, 0, 2, 2, 112];

/// What the first bytes of a client come to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Greeting {
    /// Too little to tell.
    Begun,
    /// It means the server of this name.
    Name(String),
    /// It names none: it is another protocol, or says nothing of a name.
    Nameless,
    /// It begins as TLS does and is none, so that nobody can tell what a server makes of it.
    Unreadable,
}

/// Hands on between a client and the server that it is connected to, if what the client says first names a server that is
/// allowed, or none. The server may speak first.
///
/// # Errors
/// No thread is left.
pub fn tunnel(
    client: &TcpStream,
    server: &TcpStream,
    said: &[u8],
    allows: impl FnOnce(&str) -> bool,
) -> io::Result<()> {
    relay_after(client, server, || {
        let (said, greeting) = first_words(client, said.to_vec())?;
        let is_allowed = match greeting {
            Greeting::Name(name) => allows(&name),
            Greeting::Nameless | Greeting::Begun => true,
            Greeting::Unreadable => false,
        };
        if is_allowed {
            return (&mut &*server).write_all(&said);
        }
        (&mut &*client).write_all(&UNRECOGNIZED_NAME)?;
        let _ = client.shutdown(Shutdown::Write);
        Err(io::ErrorKind::PermissionDenied.into())
    })
}

/// Reads until the client has said whom it means, or has ended.
fn first_words(mut client: &TcpStream, mut said: Vec<u8>) -> io::Result<(Vec<u8>, Greeting)> {
    let mut buffer = [0; 4096];
    loop {
        let greeting = greeting(&said);
        if greeting != Greeting::Begun {
            return Ok((said, greeting));
        }
        match client.read(&mut buffer)? {
            0 => return Ok((said, greeting)),
            size => said.extend(buffer.get(..size).unwrap_or_default()),
        }
    }
}

fn greeting(said: &[u8]) -> Greeting {
    // A record of TLS begins with its type and 3, the first number of its version (RFC 8446, 5.1). One that holds a
    // handshake, 22, has to come first: servers are known that pass over a warning before it.
    match said {
        [] | [20..=23] => Greeting::Begun,
        [22, 3, ..] if said.len() < LONGEST_HELLO => hello(said),
        [20..=23, 3, ..] => Greeting::Unreadable,
        _ => Greeting::Nameless,
    }
}

/// The name in the first message of a client of TLS.
fn hello(mut said: &[u8]) -> Greeting {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.read_tls(&mut said) {
            Ok(0) => return Greeting::Begun,
            Ok(_) => {}
            Err(_) => return Greeting::Unreadable,
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return name.map_or(Greeting::Nameless, Greeting::Name);
            }
            Ok(None) => {}
            Err(_) => return Greeting::Unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What a client says first that means the server of this name, or an address.
    fn said_to(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut said = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut said).unwrap();
        said
    }

    #[test]
    fn the_name_is_known_when_the_first_message_is_there_and_not_before() {
        let said = said_to("a.test");
        assert_eq!(greeting(&said), Greeting::Name("a.test".into()));
        for length in 0..said.len() {
            assert_eq!(greeting(&said[..length]), Greeting::Begun, "{length}");
        }
        assert_eq!(greeting(&said_to("127.0.0.1")), Greeting::Nameless);
    }

    #[test]
    fn a_message_in_several_records_is_put_together() {
        let said = said_to("a.test");
        let (head, body) = said.split_at(5);
        let records = body.chunks(100).flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&head[..3], &length, part].concat()
        });
        assert_eq!(greeting(&records.collect::<Vec<u8>>()), Greeting::Name("a.test".into()));
    }

    #[test]
    fn what_is_not_tls_names_nobody_and_what_only_looks_like_it_is_refused() {
        assert_eq!(greeting(b"SSH-2.0-client\r\n"), Greeting::Nameless);
        assert_eq!(greeting(&[22, 0]), Greeting::Nameless);
        let warning_first = [&[21, 3, 1, 0, 2, 1, 112], said_to("a.test").as_slice()].concat();
        assert_eq!(greeting(&warning_first), Greeting::Unreadable);
        let mut said = said_to("a.test");
        said[5] = 99;
        assert_eq!(greeting(&said), Greeting::Unreadable);
        assert_eq!(greeting(&[[22, 3].as_slice(), &[0; LONGEST_HELLO]].concat()), Greeting::Unreadable);
    }

    /// What the server and the client get where the client begins with this, and one name is allowed.
    fn through(said: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let connected = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (one, listener.accept().unwrap().0)
        };
        let ((mut client, near), (far, mut server)) = (connected(), connected());
        let (early, late) = said.split_at(said.len() / 2);
        let early = early.to_vec();
        let tunnel = std::thread::spawn(move || tunnel(&near, &far, &early, |name| name == "a.test"));
        server.write_all(b"welcome").unwrap();
        let mut welcome = [0; 7];
        client.read_exact(&mut welcome).unwrap();
        assert_eq!(&welcome, b"welcome", "the server may speak first");
        // A tunnel that is closed by then takes no more.
        let _ = client.write_all(late).and_then(|()| client.shutdown(Shutdown::Write));
        let (mut got, mut answer) = (Vec::new(), Vec::new());
        let _ = server.read_to_end(&mut got);
        drop(server);
        let _ = client.read_to_end(&mut answer);
        tunnel.join().unwrap().unwrap();
        (got, answer)
    }

    #[test]
    fn a_client_reaches_no_server_that_it_may_not_name() {
        let allowed = said_to("a.test");
        assert_eq!(through(&allowed), (allowed, Vec::new()));
        assert_eq!(through(b"anything else"), (b"anything else".to_vec(), Vec::new()));
        assert_eq!(through(&said_to("b.test")), (Vec::new(), UNRECOGNIZED_NAME.to_vec()));
    }
}
