//! Where the controller's socket is: in the state directory, or under a shorter name where that is too long.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::StoreError;
use super::dir::write_new;

/// Name of the socket in the state directory.
const SOCKET: &str = "keel.sock";

/// Name of the file that says where the socket is, where it is not in the state directory.
const ELSEWHERE: &str = "socket";

/// Longest path of a Unix socket: 108 bytes with the closing NUL (`sun_path` in unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Finds the socket's path. A path that is too long for a socket is replaced by a short one under `runtime_dir`
/// (`$XDG_RUNTIME_DIR`) or `/tmp/keel-UID`, which is recorded in the state directory so that every command finds
/// the same one, whatever its environment says.
pub(super) fn socket_path(state_dir: &Path, runtime_dir: Option<&Path>) -> Result<PathBuf, StoreError> {
    let inside = state_dir.join(SOCKET);
    if fits(&inside) {
        return Ok(inside);
    }
    let record = state_dir.join(ELSEWHERE);
    if let Some(recorded) = read_record(&record)? {
        make_private(parent_of(&recorded))?;
        return Ok(recorded);
    }
    let chosen = choose(state_dir, runtime_dir);
    make_private(parent_of(&chosen))?;
    write_new(&record, chosen.as_os_str().as_bytes())?;
    // Another command may have been quicker; its word counts.
    Ok(read_record(&record)?.unwrap_or(chosen))
}

fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_SOCKET_PATH
}

fn choose(state_dir: &Path, runtime_dir: Option<&Path>) -> PathBuf {
    let digest = Sha256::digest(state_dir.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).chain([".sock".into()]).collect();
    let under_runtime = runtime_dir.filter(|dir| dir.is_absolute()).map(|dir| dir.join("keel").join(&name));
    under_runtime
        .filter(|path| fits(path))
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/keel-{}", rustix::process::getuid().as_raw())).join(&name))
}

fn read_record(record: &Path) -> Result<Option<PathBuf>, StoreError> {
    match std::fs::read(record) {
        Ok(bytes) => Ok(Some(PathBuf::from(std::ffi::OsStr::from_bytes(&bytes)))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", record)(error)),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes a directory that only this user can enter, and refuses one that somebody else made: `/tmp` is shared.
fn make_private(dir: &Path) -> Result<(), StoreError> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.map_err(StoreError::io("create", dir))?,
    }
    let metadata = std::fs::symlink_metadata(dir).map_err(StoreError::io("look at", dir))?;
    let ours = metadata.is_dir()
        && metadata.uid() == rustix::process::getuid().as_raw()
        && metadata.permissions().mode() & 0o077 == 0;
    if ours {
        return Ok(());
    }
    Err(StoreError::Damaged {
        path: dir.to_path_buf(),
        what: "it is not a directory that only this user can enter".into(),
        help: "remove it, or choose a shorter --state-dir so that the socket fits in there",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_in_the_state_directory_when_its_path_fits() {
        let path = socket_path(Path::new("/var/lib/keel"), None).unwrap();
        assert_eq!(path, Path::new("/var/lib/keel/keel.sock"));
    }

    #[test]
    fn a_long_state_directory_gets_a_short_socket_that_every_environment_finds() {
        let base = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir().unwrap();
        let state_dir = base.path().join("s".repeat(120));
        std::fs::create_dir(&state_dir).unwrap();
        let path = socket_path(&state_dir, Some(runtime.path())).unwrap();
        assert!(path.starts_with(runtime.path().join("keel")) && fits(&path), "{}", path.display());
        assert_eq!(socket_path(&state_dir, None).unwrap(), path);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        let open = runtime.path().join("keel");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = make_private(&open).unwrap_err().to_string();
        assert!(error.contains("only this user can enter"), "{error}");
    }
}
