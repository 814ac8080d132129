//! Images from tar files, loaded when they are first needed.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bollard::query_parameters::ImportImageOptionsBuilder;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::io::AsyncReadExt;

use super::Inner;
use super::error::explain;
use crate::runtime::transfers::Origin;
use crate::runtime::{ErrorKind, Progress, Result, RuntimeError};

/// Time for loading an archive. Disks write 100 MB in a second; this is for images of tens of gigabytes.
const LOAD_DEADLINE: Duration = Duration::from_secs(600);

/// Bytes that are read from an archive at once.
const CHUNK: usize = 64 << 10;

/// Archives that were loaded, by path: the file as it was then, and the image's name.
pub(super) type Archives = Mutex<HashMap<String, Loaded>>;

/// One archive that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loaded {
    modified: SystemTime,
    length: u64,
    name: String,
}

impl Inner {
    /// The name of an archive's image, which is loaded unless that was done before and nothing changed since.
    pub(super) async fn ensure_archive(
        &self,
        path: &str,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<String> {
        let unreadable = |error: std::io::Error| {
            RuntimeError::new(ErrorKind::ImageUnavailable, format!("reading the image archive {path}: {error}"))
        };
        let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
        let (modified, length) = (metadata.modified().map_err(unreadable)?, metadata.len());
        if let Some(loaded) = self.loaded(path)
            && (loaded.modified, loaded.length) == (modified, length)
            && self.has_image(&loaded.name).await?
        {
            return Ok(loaded.name);
        }
        let load = async {
            let name = self.load(path, progress).await?;
            let loaded = Loaded { modified, length, name };
            self.archives.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), loaded);
            Ok(())
        };
        self.transfers.once(path, Origin::Machine, progress, load).await?;
        self.loaded(path).map(|loaded| loaded.name).ok_or_else(|| {
            RuntimeError::new(
                ErrorKind::Failed,
                format!("the image archive {path} was loaded and is not known any more"),
            )
        })
    }

    /// What was loaded from this path.
    fn loaded(&self, path: &str) -> Option<Loaded> {
        self.archives.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    async fn load(&self, path: &str, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<String> {
        let what = format!("loading the image archive {path}");
        let failed = |problem: String| RuntimeError::new(ErrorKind::ImageUnavailable, format!("{what}: {problem}"));
        let file = chunks(Path::new(path)).await.map_err(|error| failed(error.to_string()))?;
        let docker = self.engine.client().await?;
        let mut lines = Box::pin(docker.import_image_stream(ImportImageOptionsBuilder::default().build(), file, None));
        let mut said = String::new();
        let deadline = tokio::time::Instant::now() + LOAD_DEADLINE;
        loop {
            match tokio::time::timeout_at(deadline, lines.next()).await {
                Ok(Some(Ok(line))) => {
                    let text = line.stream.or(line.status).unwrap_or_default();
                    progress(Progress { message: text.trim().to_owned(), current: None, total: None });
                    if text.contains("Loaded image") {
                        said += &text;
                        said.push('\n');
                    }
                }
                Ok(Some(Err(error))) => {
                    self.engine.forget_on(&error);
                    let explained = explain(&what, &error);
                    return Err(if explained.means_unreachable() {
                        explained
                    } else {
                        failed(super::error::words(&error))
                    });
                }
                Ok(None) => break,
                Err(_) => {
                    return Err(RuntimeError::new(
                        ErrorKind::Failed,
                        format!("{what}: not done after {LOAD_DEADLINE:?}; check the engine's disk"),
                    ));
                }
            }
        }
        let names = loaded_names(&said);
        if self.differ(&names).await? {
            let names = names.join(", ");
            return Err(failed(format!(
                "it holds several images: {names}; save one of them in a file of its own (docker save -o FILE NAME)"
            )));
        }
        let first = names.into_iter().next();
        first.ok_or_else(|| failed("the engine does not say which image it holds".to_owned()))
    }

    /// Whether these are names of several images.
    async fn differ(&self, names: &[String]) -> Result<bool> {
        if names.len() < 2 {
            return Ok(false);
        }
        let mut ids = BTreeSet::new();
        for name in names {
            let found = self.engine.image(name).await;
            ids.insert(found.map_err(|error| error.explain(&format!("looking for image {name}")))?.id);
        }
        Ok(ids.len() > 1)
    }
}

/// The names of images in what the engine says at the end: lines such as `Loaded image: NAME`,
/// `Loaded image ID: sha256:...`, and Podman's `Loaded image(s): NAME,NAME`.
fn loaded_names(said: &str) -> Vec<String> {
    let names = said.lines().filter_map(|line| line.split_once("Loaded image")?.1.split_once(": "));
    let names = names.flat_map(|(_, names)| names.split(',')).map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

async fn chunks(path: &Path) -> std::io::Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
    let file = tokio::fs::File::open(path).await?;
    Ok(futures::stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK];
        let length = file.read(&mut chunk).await?;
        chunk.truncate(length);
        Ok((length > 0).then(|| (Bytes::from(chunk), file)))
    }))
}

#[cfg(test)]
mod tests {
    use super::loaded_names;

    #[test]
    fn names_are_read_from_what_each_engine_says() {
        assert_eq!(loaded_names("Loaded image: web:1\n\nLoaded image: web:2\n\n"), ["web:1", "web:2"]);
        assert_eq!(loaded_names("Loaded image ID: sha256:abc\n"), ["sha256:abc"]);
        assert_eq!(loaded_names("Loaded image(s): localhost/a:1,localhost/b:1"), ["localhost/a:1", "localhost/b:1"]);
        assert_eq!(loaded_names("something else"), [""; 0]);
    }
}
