//! Where the controller's socket is: in the state directory, or under a shorter name where that is too long.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::StoreError;
use super::dir::replace;

/// Name of the socket in the state directory.
const SOCKET: &str = "keel.sock";

/// Name of the file that says where the socket is, where it is not in the state directory.
const ELSEWHERE: &str = "socket";

/// Longest path of a Unix socket: 108 bytes with the closing NUL (`sun_path` in unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Where a controller would listen, for one who looks for it; none where it can't listen anywhere yet. A path that is too
/// long for a socket is replaced by a short one, which is recorded in the state directory so that every command finds the
/// same one, whatever its environment says.
pub(super) fn find(state_dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let inside = state_dir.join(SOCKET);
    if fits(&inside) {
        return Ok(Some(inside));
    }
    let Some(recorded) = read_record(&state_dir.join(ELSEWHERE))? else { return Ok(None) };
    let dir = parent_of(&recorded);
    match std::fs::symlink_metadata(dir) {
        // A directory under /run or /tmp goes with a reboot, and whoever listened there with it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => check_private(dir).map(|()| Some(recorded)),
    }
}

/// Where the controller listens, for itself: its directory exists afterwards. A path that is too long for a socket is
/// replaced by a short one under `runtime_dir` (`$XDG_RUNTIME_DIR`) or `/tmp/keel-UID`, which is recorded. The one that is
/// recorded stays for as long as its directory can be made. The caller holds the lock.
pub(super) fn claim(state_dir: &Path, runtime_dir: Option<&Path>) -> Result<PathBuf, StoreError> {
    let inside = state_dir.join(SOCKET);
    if fits(&inside) {
        return Ok(inside);
    }
    let record = state_dir.join(ELSEWHERE);
    let recorded = read_record(&record)?;
    let mut last = None;
    for place in recorded.iter().cloned().chain(choices(state_dir, runtime_dir)) {
        match make_private(parent_of(&place)) {
            Ok(()) if recorded.as_ref() == Some(&place) => return Ok(place),
            Ok(()) => {
                replace(&record, place.as_os_str().as_bytes()).map_err(StoreError::io("write", &record))?;
                return Ok(place);
            }
            Err(error) => last = Some(error),
        }
    }
    // There is always one choice, so that none without an error is left.
    last.map_or(Ok(inside), Err)
}

fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_SOCKET_PATH
}

/// Short paths, the best first.
fn choices(state_dir: &Path, runtime_dir: Option<&Path>) -> impl Iterator<Item = PathBuf> {
    let digest = Sha256::digest(state_dir.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).chain([".sock".into()]).collect();
    let under_runtime = runtime_dir.filter(|dir| dir.is_absolute()).map(|dir| dir.join("keel").join(&name));
    let shared = PathBuf::from(format!("/tmp/keel-{}", rustix::process::getuid().as_raw())).join(&name);
    under_runtime.filter(|path| fits(path)).into_iter().chain([shared])
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
    check_private(dir)
}

fn check_private(dir: &Path) -> Result<(), StoreError> {
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
        let inside = PathBuf::from("/var/lib/keel/keel.sock");
        assert_eq!(claim(Path::new("/var/lib/keel"), None).unwrap(), inside);
        assert_eq!(find(Path::new("/var/lib/keel")).unwrap(), Some(inside));
    }

    /// A state directory whose socket has to be elsewhere.
    fn long(base: &Path) -> PathBuf {
        let state_dir = base.join("s".repeat(120));
        std::fs::create_dir(&state_dir).unwrap();
        state_dir
    }

    #[test]
    fn a_long_state_directory_gets_a_short_socket_that_every_environment_finds() {
        let (base, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state_dir = long(base.path());
        assert_eq!(find(&state_dir).unwrap(), None);
        let path = claim(&state_dir, Some(runtime.path())).unwrap();
        assert!(path.starts_with(runtime.path().join("keel")) && fits(&path), "{}", path.display());
        assert_eq!(find(&state_dir).unwrap(), Some(path.clone()));
        assert_eq!(claim(&state_dir, None).unwrap(), path);
    }

    #[test]
    fn a_socket_whose_directory_went_is_nobodys_and_is_chosen_again() {
        let (base, runtime, later) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state_dir = long(base.path());
        let path = claim(&state_dir, Some(runtime.path())).unwrap();
        std::fs::remove_dir(parent_of(&path)).unwrap();
        assert_eq!(find(&state_dir).unwrap(), None);
        assert_eq!(claim(&state_dir, Some(later.path())).unwrap(), path, "the directory could be made again");
        drop(runtime);
        let chosen = claim(&state_dir, Some(later.path())).unwrap();
        assert!(chosen.starts_with(later.path().join("keel")), "{}", chosen.display());
        assert_eq!(find(&state_dir).unwrap(), Some(chosen));
    }

    #[test]
    fn nobody_is_looked_for_in_a_directory_that_others_can_enter() {
        let (base, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state_dir = long(base.path());
        let path = claim(&state_dir, Some(runtime.path())).unwrap();
        std::fs::set_permissions(parent_of(&path), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = find(&state_dir).unwrap_err().to_string();
        assert!(error.contains("only this user can enter"), "{error}");
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
