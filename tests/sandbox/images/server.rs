//! An HTTP server that answers as it is told, also in ways that no registry should.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::build::{Image, MANIFEST, digest};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Length that is announced instead of the body's.
    pub announced: Option<u64>,
    /// Repeat the body without an end, and without a length.
    pub endless: bool,
}

pub fn ok(body: &[u8]) -> Answer {
    Answer { status: 200, body: body.to_vec(), ..Answer::default() }
}

pub fn status(status: u16) -> Answer {
    Answer { status, ..Answer::default() }
}

impl Answer {
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// A server on a free port of the loopback. It ends with the process of the test.
pub struct Server {
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &*handler, &log));
            }
        });
        Self { address, requests }
    }

    /// One that has this image, and answers some requests in another way.
    pub fn with_image(image: &Image, other: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let image = image.clone();
        Self::start(move |request| other(request).unwrap_or_else(|| honest(&image, request)))
    }

    pub fn image(&self) -> String {
        format!("{}/app:1", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Requests of a path with this in it.
    pub fn asked(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.contains(path)).collect()
    }
}

/// What a good registry answers.
pub fn honest(image: &Image, request: &Request) -> Answer {
    let name = request.path.rsplit('/').next().unwrap_or_default();
    if request.path.contains("/manifests/") && (name == "1" || name == digest(&image.manifest)) {
        return ok(&image.manifest)
            .with("content-type", MANIFEST)
            .with("docker-content-digest", &digest(&image.manifest));
    }
    let blobs = || image.layers.iter().chain([&image.config]);
    match blobs().find(|bytes| request.path.contains("/blobs/") && digest(bytes) == name) {
        Some(bytes) => ranged(bytes, request),
        None => status(404),
    }
}

/// The part of a blob that is asked for.
pub fn ranged(bytes: &[u8], request: &Request) -> Answer {
    let from = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from < bytes.len() => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Answer { status: 206, ..ok(&bytes[from..]) }.with("content-range", &range)
        }
        Some(_) => status(416),
        None => ok(bytes),
    }
}

fn serve(mut stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>) {
    let Some(request) = read(&mut stream) else { return };
    log.lock().unwrap().push(request.clone());
    let answer = handler(&request);
    let mut head = format!("HTTP/1.1 {} Told\r\nconnection: close\r\n", answer.status);
    if !answer.endless {
        let length = answer.announced.unwrap_or(answer.body.len() as u64);
        head += &format!("content-length: {length}\r\n");
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut result = stream.write_all(head.as_bytes());
    if request.method != "HEAD" {
        result = result.and_then(|()| stream.write_all(&answer.body));
        while answer.endless && result.is_ok() {
            result = stream.write_all(&answer.body);
        }
    }
    let _ = stream.flush();
}

fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        // No TLS here.
        if stream.read(&mut byte).ok()? == 0 || (text.is_empty() && byte == [0x16]) {
            return None;
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).ok()?;
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.into(), value.trim().into())).collect();
    let request = Request { method, path, headers };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(request)
}
