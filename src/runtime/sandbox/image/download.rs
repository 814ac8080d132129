//! Blobs on their way from a registry to the disk: hashed while they come, resumed after a cut, never longer than
//! announced.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::CONTENT_RANGE;
use hyper::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::bounds::{LARGEST_BLOB, PROGRESS, WRITE_BACKLOG};
use super::digest::Digest;
use super::document::Descriptor;
use super::error::{ImageError, Result};
use super::http::{HttpError, piece};
use super::registry::{Registry, announced};
use super::store::{Lock, Store, publish};
use super::tries::Tries;
use crate::runtime::sandbox::layout::private_file;

/// Size of one read of what came earlier.
const READ_SIZE: usize = 256 << 10;

/// A blob on its way.
struct Part {
    file: File,
    hasher: Sha256,
    have: u64,
    /// Whether some of it lay here before, where a disk may have damaged it.
    is_resumed: bool,
    /// Held until the last write, also where nobody waits for it any more.
    _lock: Lock,
}

/// What a try brought.
enum Try {
    Done,
    Cut(HttpError),
}

/// Fetches a blob, or the rest of it, and returns where it lies. `progress` is told how many of its bytes are here.
pub async fn blob(
    registry: &Registry<'_>,
    wanted: &Descriptor,
    store: &Store,
    lease: &Lock,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<PathBuf> {
    if wanted.size > LARGEST_BLOB {
        let (digest, size) = (&wanted.digest, wanted.size);
        return Err(ImageError::refused(format!("the layer {digest} has {size} bytes, more than {LARGEST_BLOB}")));
    }
    let lock = store.lock_blob(&wanted.digest, lease).await?;
    let path = store.blob(&wanted.digest);
    if fs::metadata(&path).is_ok_and(|data| data.len() == wanted.size) {
        progress(wanted.size);
        return Ok(path);
    }
    let part_path = store.part(&wanted.digest);
    let failed = |error: &io::Error| ImageError::io(format!("writing {}", part_path.display()), error);
    let (open, size) = (part_path.clone(), wanted.size);
    let mut part = blocking(move || open_part(open, size, lock)).await?.map_err(|error| failed(&error))?;
    let complete = async |part| complete(registry, wanted, part, progress).await?.map_err(|error| failed(&error));
    part = complete(part).await?;
    if part.is_resumed && part.digest() != wanted.digest {
        part.restart().map_err(|error| failed(&error))?;
        part = complete(part).await?;
    }
    let digest = part.digest();
    if digest != wanted.digest {
        let _ = fs::remove_file(&part_path);
        return Err(registry.wrong(format!("the layer {} came with the content of {digest}", wanted.digest)));
    }
    let file = part.file.try_clone().map_err(|error| failed(&error))?;
    let (from, to) = (part_path.clone(), path.clone());
    blocking(move || publish(&file, &from, &to)).await?.map_err(|error| failed(&error))?;
    Ok(path)
}

/// Asks for what is missing until all is here.
async fn complete(
    registry: &Registry<'_>,
    wanted: &Descriptor,
    mut part: Part,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<io::Result<Part>> {
    let mut tries = Tries::first();
    loop {
        let before = part.have;
        let (left, result) = attempt(registry, wanted, part, progress).await?;
        part = match left {
            Ok(part) => part,
            Err(error) => return Ok(Err(error)),
        };
        match result {
            Try::Done => return Ok(Ok(part)),
            Try::Cut(error) => {
                match part.have.saturating_sub(before) {
                    PROGRESS.. => tries.brought(),
                    1.. => tries.answered(),
                    0 => {}
                }
                let Some(wait) = tries.again(&error) else { return Err(cut(registry, wanted, part.have, error)) };
                registry.pause(&error.message, wait).await;
            }
        }
    }
}

fn cut(registry: &Registry<'_>, wanted: &Descriptor, have: u64, error: HttpError) -> ImageError {
    let place = format!("the layer {} ({have} of {} bytes)", wanted.digest.short(), wanted.size);
    registry.explain(HttpError { message: format!("{place}: {}", error.message), ..error })
}

async fn blocking<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(action).await.map_err(|error| ImageError::Failed(error.to_string()))
}

/// Opens what came earlier and hashes it.
fn open_part(path: PathBuf, size: u64, lock: Lock) -> io::Result<Part> {
    let mut file = private_file().read(true).create(true).truncate(false).open(path)?;
    let (mut hasher, mut have) = (Sha256::new(), 0);
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Part { file, hasher, have, is_resumed: have > 0, _lock: lock });
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
        have += read as u64;
    }
}

impl Part {
    fn restart(&mut self) -> io::Result<()> {
        use io::Seek;
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.hasher, self.have, self.is_resumed) = (Sha256::new(), 0, false);
        Ok(())
    }

    /// The digest of all that is here.
    fn digest(&self) -> Digest {
        Digest::finish(self.hasher.clone())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }
}

/// One request for what is missing.
async fn attempt(
    registry: &Registry<'_>,
    wanted: &Descriptor,
    mut part: Part,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(io::Result<Part>, Try)> {
    progress(part.have);
    if part.have == wanted.size {
        return Ok((Ok(part), Try::Done));
    }
    let response = match registry.blob(&wanted.digest, part.have).await {
        Ok(response) => response,
        Err(error) if error.status == Some(StatusCode::RANGE_NOT_SATISFIABLE) && part.have > 0 => {
            let restarted = part.restart().map(|()| part);
            return Ok((restarted, Try::Cut(HttpError { retry: Some(Duration::ZERO), ..error })));
        }
        Err(error) => return Ok((Ok(part), Try::Cut(error))),
    };
    if !continues(&response, part.have)
        && let Err(error) = part.restart()
    {
        return Ok((Err(error), Try::Done));
    }
    let left = wanted.size - part.have;
    if let Some(length) = announced(&response).filter(|length| *length != left) {
        let digest = &wanted.digest;
        return Err(registry.wrong(format!("{length} bytes are announced for the layer {digest}, {left} are wanted")));
    }
    let (sender, receiver) = mpsc::channel(WRITE_BACKLOG);
    let writer = tokio::task::spawn_blocking(move || write(part, receiver));
    let result = receive(response.into_body(), wanted.size - left, wanted.size, sender, progress).await;
    let part = writer.await.map_err(|error| ImageError::Failed(error.to_string()))?;
    match result {
        Ok(result) => Ok((part, result)),
        Err(TooLong) => {
            Err(registry.wrong(format!("more than the {} bytes of the layer {} came", wanted.size, wanted.digest)))
        }
    }
}

/// Whether a response goes on where the part ends.
fn continues(response: &Response<Incoming>, have: u64) -> bool {
    if have == 0 {
        return true;
    }
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    response.status() == StatusCode::PARTIAL_CONTENT && range.trim_start().starts_with(&format!("bytes {have}-"))
}

struct TooLong;

/// Hands a body over to the writer.
async fn receive(
    mut body: Incoming,
    mut have: u64,
    size: u64,
    sender: mpsc::Sender<Bytes>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> std::result::Result<Try, TooLong> {
    loop {
        match piece(&mut body).await {
            Ok(Some(bytes)) => {
                have += bytes.len() as u64;
                if have > size {
                    return Err(TooLong);
                }
                // A writer that is gone tells why itself.
                if sender.send(bytes).await.is_err() {
                    return Ok(Try::Done);
                }
                progress(have);
            }
            Ok(None) if have == size => return Ok(Try::Done),
            Ok(None) => return Ok(Try::Cut(HttpError::passing("the connection was closed midway"))),
            Err(error) => return Ok(Try::Cut(error)),
        }
    }
}

fn write(mut part: Part, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<Part> {
    while let Some(bytes) = pieces.blocking_recv() {
        part.append(&bytes)?;
    }
    Ok(part)
}
