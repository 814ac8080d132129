//! Removes images and layers that nothing needs any more: by use, never by age alone.
//!
//! What is needed is found out while nobody works with images, and set aside; it is deleted when everybody may go on.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::bounds::{DISK_HIGH, DISK_LOW, PART_AGE, SHORTEST_STAY, UNUSED_AGE};
use super::error::{ImageError, Result};
use super::store::{ImageRecord, Store, age};
use crate::runtime::sandbox::fresh::unique;
use crate::runtime::sandbox::layout::{Layout, read_json};
use crate::runtime::sandbox::record::{Record, Root};
use crate::runtime::sandbox::remove;

/// An image that may go.
struct Unused {
    path: PathBuf,
    name: String,
    age: Duration,
}

/// Removes what nothing needs, and returns the names of the images that went. Needed is what instances are made of, and what
/// has one of these names. Nothing goes while an image is on its way, or where it can't be told what is needed.
///
/// # Errors
/// The directories can't be read.
pub fn collect(store: &Store, layout: &Layout, needed: &BTreeSet<String>) -> crate::runtime::Result<Vec<String>> {
    collected(store, layout, needed).map_err(ImageError::told)
}

fn collected(store: &Store, layout: &Layout, needed: &BTreeSet<String>) -> Result<Vec<String>> {
    if !store.root().exists() {
        return Ok(Vec::new());
    }
    let mut gone = Vec::new();
    loop {
        let full = disk_use(store.root()) >= if gone.is_empty() { DISK_HIGH } else { DISK_LOW };
        let Some(lock) = store.exclusive()? else { return Ok(gone) };
        let names =
            set_aside(store, layout, needed, full).map_err(|error| ImageError::io("collecting images", &error))?;
        drop(lock);
        delete(store);
        let again = full && !names.is_empty();
        gone.extend(names);
        if !again {
            return Ok(gone);
        }
    }
}

/// Images that nothing needs and that were not used for [`UNUSED_AGE`], each with the time of its last use; the
/// next [`collect`] removes them, where nobody works with images.
///
/// # Errors
/// The directories can't be read.
pub fn unneeded(store: &Store, layout: &Layout, needed: &BTreeSet<String>) -> io::Result<BTreeMap<String, SystemTime>> {
    if !store.root().exists() {
        return Ok(BTreeMap::new());
    }
    let Some(in_use) = layers_in_use(layout) else { return Ok(BTreeMap::new()) };
    let is_unneeded = |path: &PathBuf| {
        let record = read_json::<ImageRecord>(path).ok().flatten()?;
        let used = fs::metadata(path).and_then(|data| data.modified()).ok()?;
        used.elapsed().ok().filter(|age| *age >= UNUSED_AGE)?;
        (!is_used(&record, &in_use) && !needed.contains(&record.name)).then_some((record.name, used))
    };
    Ok(files(&store.records())?.iter().filter_map(is_unneeded).collect())
}

fn is_used(record: &ImageRecord, in_use: &BTreeSet<String>) -> bool {
    record.layers.last().is_some_and(|top| in_use.contains(top))
}

/// Removes what processes that are gone were making. Nothing goes while anybody works with images.
///
/// # Errors
/// The directories can't be read.
pub fn sweep_unfinished(store: &Store) -> Result<()> {
    let Some(lock) = store.exclusive()? else { return Ok(()) };
    let swept = files(&store.temporary()).and_then(|paths| paths.iter().try_for_each(|path| aside(store, path)));
    drop(lock);
    delete(store);
    swept.map_err(|error| ImageError::io("removing what was left unfinished", &error))
}

/// Takes everything that is not needed out of its place. With a full disk that is also the image that was not used for
/// the longest time.
fn set_aside(store: &Store, layout: &Layout, needed: &BTreeSet<String>, full: bool) -> io::Result<Vec<String>> {
    let Some(in_use) = layers_in_use(layout) else { return Ok(Vec::new()) };
    let mut kept: Vec<ImageRecord> = Vec::new();
    let mut unused: Vec<(Unused, ImageRecord)> = Vec::new();
    for path in files(&store.records())? {
        let Ok(Some(record)) = read_json::<ImageRecord>(&path) else {
            // Broken, and as good as none.
            aside(store, &path)?;
            continue;
        };
        let age = age(&path).unwrap_or_default();
        if is_used(&record, &in_use) || needed.contains(&record.name) || age < SHORTEST_STAY {
            kept.push(record);
        } else {
            unused.push((Unused { path, name: record.name.clone(), age }, record));
        }
    }
    unused.sort_by_key(|(one, _)| std::cmp::Reverse(one.age));
    let mut gone = Vec::new();
    for (index, (one, record)) in unused.into_iter().enumerate() {
        if one.age >= UNUSED_AGE || (full && index == 0) {
            aside(store, &one.path)?;
            gone.push(one.name);
        } else {
            kept.push(record);
        }
    }
    sweep(store, &kept, in_use)?;
    Ok(gone)
}

/// Sets aside what no record names.
fn sweep(store: &Store, kept: &[ImageRecord], mut layers: BTreeSet<String>) -> io::Result<()> {
    layers.extend(kept.iter().flat_map(|record| record.layers.iter().cloned()));
    let documents: BTreeSet<&str> = kept.iter().flat_map(|record| &record.documents).map(|one| one.hex()).collect();
    for path in files(&store.layers())? {
        if !name(&path).is_some_and(|name| layers.contains(name)) {
            aside(store, &path)?;
        }
    }
    for path in files(&store.blobs())? {
        // What was fetched and not unpacked yet helps the next try.
        let is_waiting = || age(&path).is_some_and(|age| age < PART_AGE);
        if !name(&path).is_some_and(|name| documents.contains(name)) && !is_waiting() {
            aside(store, &path)?;
        }
    }
    for path in files(&store.locks())?.into_iter().chain(files(&store.temporary())?) {
        aside(store, &path)?;
    }
    Ok(())
}

/// Layers that instances of any owner are made of; `None` where that can't be told.
fn layers_in_use(layout: &Layout) -> Option<BTreeSet<String>> {
    let mut layers = BTreeSet::new();
    for path in files(&layout.instances()).ok()? {
        let record = read_json::<Record>(&layout.instance(name(&path)?).record()).ok()?;
        let lower = match record.map(|record| record.launch.root) {
            Some(Root::Layers { lower, .. } | Root::Copy { from: lower, .. }) => lower,
            Some(Root::Host | Root::Dir { .. } | Root::Shared) | None => continue,
        };
        layers.extend(lower.iter().filter_map(|root| name(root.parent()?)).map(str::to_owned));
    }
    Some(layers)
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn name(path: &Path) -> Option<&str> {
    path.file_name().and_then(OsStr::to_str)
}

/// How what is to be deleted is called.
const GONE: &str = "gone";

fn aside(store: &Store, path: &Path) -> io::Result<()> {
    // A name that this process alone uses: somebody else's may come to be used again.
    fs::rename(path, store.temporary().join(unique(GONE)?))
}

/// Deletes what was set aside by this process.
fn delete(store: &Store) {
    let own = format!("{GONE}-{}-", std::process::id());
    for path in files(&store.temporary()).unwrap_or_default() {
        if !name(&path).is_some_and(|name| name.starts_with(&own)) {
            continue;
        }
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|data| data.is_dir());
        let deleted = if is_folder { remove::tree(&path) } else { fs::remove_file(&path) };
        if let Err(error) = deleted {
            tracing::warn!(path = %path.display(), %error, "what an image left can't be deleted; it is tried again");
        }
    }
}

/// How much of the disk is in use, in percent, as df(1) has it: what is kept back for root counts for neither side.
fn disk_use(path: &Path) -> u64 {
    let Ok(data) = rustix::fs::statvfs(path) else { return 0 };
    let used = u128::from(data.f_blocks.saturating_sub(data.f_bfree));
    let all = used + u128::from(data.f_bavail);
    u64::try_from((used * 100).checked_div(all).unwrap_or(0)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sandbox::image::document::Config;

    fn day(number: u64) -> Duration {
        Duration::from_secs(number * 24 * 3600)
    }

    /// A store with images of one layer each, and their ages.
    fn store(folder: &Path, images: &[(&str, Duration)]) -> Store {
        let store = Store::new(folder);
        store.prepare().unwrap();
        for (name, age) in images {
            let layers = vec![format!("layer-{name}")];
            fs::create_dir_all(store.layer_root(&layers[0])).unwrap();
            let document = store.keep(name.as_bytes()).unwrap();
            store
                .write_record(&ImageRecord::new(name, String::new(), vec![document], layers, Config::default()))
                .unwrap();
            let newest = files(&store.records())
                .unwrap()
                .into_iter()
                .find(|path| read_json::<ImageRecord>(path).unwrap().is_some_and(|record| record.name == *name));
            let file = fs::File::open(newest.unwrap()).unwrap();
            file.set_modified(std::time::SystemTime::now() - *age).unwrap();
        }
        store
    }

    #[test]
    fn a_full_disk_takes_the_longest_unused_image_and_only_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let images = [("new", Duration::ZERO), ("b", day(2)), ("a", day(3)), ("old", day(8))];
        let store = store(folder.path(), &images);
        assert_eq!(set_aside(&store, &layout, &BTreeSet::new(), false).unwrap(), ["old"]);
        assert_eq!(set_aside(&store, &layout, &BTreeSet::new(), true).unwrap(), ["a"]);
        assert_eq!(set_aside(&store, &layout, &BTreeSet::new(), true).unwrap(), ["b"]);
        assert_eq!(set_aside(&store, &layout, &BTreeSet::new(), true).unwrap(), Vec::<String>::new());
        assert_eq!(files(&store.layers()).unwrap(), [store.layers().join("layer-new")]);
        delete(&store);
        assert_eq!(files(&store.temporary()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_a_rollback_may_need_stays_however_long_it_was_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), &[("good", day(30)), ("old", day(30)), ("new", day(1))]);
        let layout = Layout::new(folder.path());
        let needed = BTreeSet::from(["good".to_owned()]);
        assert_eq!(set_aside(&store, &layout, &needed, false).unwrap(), ["old"]);
        assert_eq!(set_aside(&store, &layout, &needed, true).unwrap(), ["new"]);
        assert_eq!(set_aside(&store, &layout, &needed, true).unwrap(), Vec::<String>::new());
        assert!(store.layer_root("layer-good").exists());
    }

    #[test]
    fn nothing_goes_while_an_image_is_on_its_way_or_where_an_instance_can_not_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        layout.prepare().unwrap();
        let store = store(folder.path(), &[("old", day(8))]);
        let lease = store.lease().unwrap();
        assert_eq!(collected(&store, &layout, &BTreeSet::new()).unwrap(), Vec::<String>::new());
        drop(lease);
        fs::create_dir(layout.instances().join("x")).unwrap();
        fs::write(layout.instance("x").record(), "{").unwrap();
        assert_eq!(collected(&store, &layout, &BTreeSet::new()).unwrap(), Vec::<String>::new());
        fs::remove_dir_all(layout.instances().join("x")).unwrap();
        assert_eq!(collected(&store, &layout, &BTreeSet::new()).unwrap(), ["old"]);
    }
}
