use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use tar::{Builder, EntryType, Header};

use super::*;

/// A directory with a layer in it, and things beside it that no layer may reach.
struct Bench {
    folder: tempfile::TempDir,
    layers: usize,
}

type Archive = Builder<Vec<u8>>;

fn archive() -> Archive {
    Builder::new(Vec::new())
}

/// Adds an entry whose names are written as they are, whatever they are.
fn add(archive: &mut Archive, kind: EntryType, path: &str, link: &str, mode: u32, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(1_000_000_000);
    // Without root everything belongs to whoever unpacks.
    header.set_uid(7);
    header.set_gid(8);
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.append(&header, content).unwrap();
}

fn file(archive: &mut Archive, path: &str, content: &str) {
    add(archive, EntryType::Regular, path, "", 0o644, content.as_bytes());
}

fn directory(archive: &mut Archive, path: &str, mode: u32) {
    add(archive, EntryType::Directory, path, "", mode, b"");
}

fn symlink(archive: &mut Archive, path: &str, target: &str) {
    add(archive, EntryType::Symlink, path, target, 0o777, b"");
}

fn hard_link(archive: &mut Archive, path: &str, target: &str) {
    add(archive, EntryType::Link, path, target, 0o644, b"");
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/file"), "outside").unwrap();
        fs::set_permissions(folder.path().join("outside"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, layers: 0 }
    }

    fn unpack(&mut self, archive: Archive, lower: Option<&[PathBuf]>) -> (PathBuf, Result<Unpacked>) {
        self.unpack_bytes(&archive.into_inner().unwrap(), lower)
    }

    fn unpack_bytes(&mut self, archive: &[u8], lower: Option<&[PathBuf]>) -> (PathBuf, Result<Unpacked>) {
        self.layers += 1;
        let target = self.folder.path().join(format!("layer{}", self.layers));
        fs::create_dir(&target).unwrap();
        let merged = lower.map(|lower| Merged::open(lower).unwrap());
        let result = unpack(archive, &target, merged.as_ref());
        // Whatever happened, nothing outside has changed.
        let outside = self.folder.path().join("outside");
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o7777, 0o755);
        (target, result)
    }

    /// Unpacks a lowest layer.
    fn good(&mut self, archive: Archive) -> PathBuf {
        let (target, result) = self.unpack(archive, Some(&[]));
        result.unwrap();
        target
    }

    /// The reason why a layer is refused.
    fn refusal(&mut self, archive: Archive) -> String {
        match self.unpack(archive, Some(&[])).1.unwrap_err() {
            Problem::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

fn is_whiteout_at(path: PathBuf) -> bool {
    let data = fs::symlink_metadata(path).unwrap();
    data.file_type().is_char_device() && data.rdev() == 0
}

fn is_opaque_at(path: PathBuf) -> bool {
    super::super::merged::is_opaque(fs::File::open(path).unwrap().as_fd())
}

#[test]
fn files_of_every_kind_come_with_their_attributes() {
    let mut tar = archive();
    directory(&mut tar, "./", 0o750);
    directory(&mut tar, "closed/", 0o555);
    add(&mut tar, EntryType::Regular, "closed/tool", "", 0o4755, b"tool");
    symlink(&mut tar, "closed/link", "/etc/../tool");
    hard_link(&mut tar, "again", "closed/tool");
    add(&mut tar, EntryType::Fifo, "pipe", "", 0o600, b"");
    let mut bench = Bench::new();
    let target = bench.good(tar);
    let tool = fs::metadata(target.join("closed/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.mtime(), tool.nlink()), (0o4755, 1_000_000_000, 2));
    assert_eq!(tool.ino(), fs::metadata(target.join("again")).unwrap().ino());
    assert_eq!(fs::read_link(target.join("closed/link")).unwrap().to_str(), Some("/etc/../tool"));
    let closed = fs::metadata(target.join("closed")).unwrap();
    assert_eq!((closed.mode() & 0o7777, closed.mtime()), (0o555, 1_000_000_000));
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o750);
    assert!(fs::symlink_metadata(target.join("pipe")).unwrap().file_type().is_fifo());
    if rustix::process::geteuid().is_root() {
        assert_eq!((tool.uid(), tool.gid()), (7, 8));
    }
    // Lets the temporary directory go for an ordinary user.
    fs::set_permissions(target.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn names_that_lead_out_are_refused_by_name() {
    let mut bench = Bench::new();
    for path in ["../outside/x", "a/../../outside/x", ".."] {
        let mut tar = archive();
        file(&mut tar, path, "x");
        let why = bench.refusal(tar);
        assert!(why.contains(path) && why.contains("leads upwards"), "{why}");
    }
    let mut tar = archive();
    hard_link(&mut tar, "x", "../outside/file");
    assert!(bench.refusal(tar).contains("leads upwards"));
    let mut tar = archive();
    file(&mut tar, "/etc/absolute", "inside");
    assert_eq!(text(bench.good(tar).join("etc/absolute")), "inside");
}

#[test]
fn links_never_lead_out() {
    let mut bench = Bench::new();
    let outside = bench.folder.path().join("outside");
    for to in [outside.to_str().unwrap(), "../outside", "../../../../../../../../outside"] {
        let mut tar = archive();
        symlink(&mut tar, "d", to);
        file(&mut tar, "d/new", "x");
        file(&mut tar, "d/file", "x");
        let target = bench.good(tar);
        assert!(target.join("outside/new").exists() || target.join(to.trim_start_matches('/')).join("new").exists());
        // A directory with a mode of its own replaces the link, and not what it leads to.
        let mut tar = archive();
        symlink(&mut tar, "d", to);
        directory(&mut tar, "d", 0o777);
        file(&mut tar, "d/file", "x");
        let target = bench.good(tar);
        assert!(fs::symlink_metadata(target.join("d")).unwrap().is_dir());
        // A hard link does not follow, and a file replaces a link instead of writing through it.
        let mut tar = archive();
        symlink(&mut tar, "d", &format!("{to}/file"));
        hard_link(&mut tar, "e", "d");
        file(&mut tar, "d", "own");
        let target = bench.good(tar);
        assert_eq!(text(target.join("d")), "own");
        assert!(fs::symlink_metadata(target.join("e")).unwrap().is_symlink());
    }
    let mut tar = archive();
    symlink(&mut tar, "a", "b");
    symlink(&mut tar, "b", "a");
    file(&mut tar, "a/x", "x");
    assert!(bench.refusal(tar).contains("too many links"));
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let mut tar = archive();
    directory(&mut tar, "a", 0o755);
    file(&mut tar, "a/b/c", "deep");
    file(&mut tar, "a", "now a file");
    file(&mut tar, "f", "first");
    file(&mut tar, "f", "second");
    file(&mut tar, "g", "a file");
    directory(&mut tar, "g", 0o700);
    file(&mut tar, "g/x", "inside");
    hard_link(&mut tar, "f", "f");
    let mut bench = Bench::new();
    let target = bench.good(tar);
    assert_eq!(text(target.join("a")), "now a file");
    assert_eq!(text(target.join("f")), "second");
    assert_eq!(text(target.join("g/x")), "inside");
    assert_eq!(fs::metadata(target.join("g")).unwrap().mode() & 0o777, 0o700);
    let mut tar = archive();
    file(&mut tar, "f", "file");
    file(&mut tar, "f/x", "inside of a file");
    assert!(bench.refusal(tar).contains("no directory"));
}

#[test]
fn removals_take_the_form_of_overlays() {
    let mut tar = archive();
    directory(&mut tar, "d", 0o755);
    file(&mut tar, "d/.wh.gone", "");
    file(&mut tar, "d/.wh..wh.plnk", "");
    file(&mut tar, "o/.wh..wh..opq", "");
    file(&mut tar, "o/kept", "own");
    // Removed below, and made anew here: in both orders.
    file(&mut tar, ".wh.first", "");
    directory(&mut tar, "first", 0o755);
    directory(&mut tar, "second", 0o755);
    file(&mut tar, ".wh.second", "");
    file(&mut tar, ".wh.third", "");
    file(&mut tar, "third/x", "own");
    file(&mut tar, ".wh.file", "");
    file(&mut tar, "file", "own");
    file(&mut tar, "other", "own");
    file(&mut tar, ".wh.other", "");
    let mut bench = Bench::new();
    let target = bench.good(tar);
    assert!(is_whiteout_at(target.join("d/gone")));
    assert_eq!(fs::read_dir(target.join("d")).unwrap().count(), 1);
    for (folder, opaque) in [("d", false), ("o", true), ("first", true), ("second", true), ("third", true)] {
        assert_eq!(is_opaque_at(target.join(folder)), opaque, "{folder}");
    }
    assert_eq!((text(target.join("file")), text(target.join("other"))), ("own".into(), "own".into()));
    let mut tar = archive();
    file(&mut tar, ".wh..wh..opq", "");
    assert!(bench.unpack(tar, None).1.unwrap().opaque);
    for name in [".wh.", ".wh..", ".wh..."] {
        let mut tar = archive();
        file(&mut tar, name, "");
        assert!(bench.refusal(tar).contains("removes nothing"), "{name}");
    }
}

#[test]
fn marks_of_overlays_can_not_be_forged() {
    let mut tar = archive();
    let attributes = [
        ("SCHILY.xattr.user.overlay.opaque", "y"),
        ("SCHILY.xattr.trusted.overlay.redirect", "/"),
        ("SCHILY.xattr.user.own", "v"),
    ];
    tar.append_pax_extensions(attributes.map(|(key, value)| (key, value.as_bytes()))).unwrap();
    directory(&mut tar, "d", 0o755);
    let mut bench = Bench::new();
    let target = bench.good(tar);
    assert!(!is_opaque_at(target.join("d")));
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(target.join("d"), "user.own", &mut value), Ok(1));
    let mut tar = archive();
    add(&mut tar, EntryType::Char, "gone", "", 0o644, b"");
    assert!(bench.refusal(tar).contains("marks removed files"));
}

#[test]
fn what_lies_below_is_asked_for_and_used() {
    let mut bench = Bench::new();
    let mut tar = archive();
    directory(&mut tar, "tmp", 0o1777);
    file(&mut tar, "usr/lib/libc", "libc");
    symlink(&mut tar, "lib", "usr/lib");
    let lower = [bench.good(tar)];
    let layer = || {
        let mut tar = archive();
        file(&mut tar, "tmp/new", "new");
        file(&mut tar, "lib/more", "more");
        hard_link(&mut tar, "copy", "usr/lib/libc");
        hard_link(&mut tar, "another", "lib/libc");
        tar
    };
    assert!(matches!(bench.unpack(layer(), None).1, Err(Problem::NeedsLower)));
    let (target, result) = bench.unpack(layer(), Some(&lower));
    assert_eq!(result.unwrap(), Unpacked { needed_lower: true, ..Unpacked::default() });
    assert_eq!(fs::metadata(target.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(text(target.join("usr/lib/more")), "more");
    assert_eq!(fs::read_link(target.join("lib")).unwrap().to_str(), Some("usr/lib"));
    assert_eq!((text(target.join("copy")), text(target.join("another"))), ("libc".into(), "libc".into()));
    assert_eq!(fs::metadata(target.join("copy")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(lower[0].join("usr/lib/libc")).unwrap().nlink(), 1);
    let mut tar = archive();
    hard_link(&mut tar, "x", "no/such/file");
    match bench.unpack(tar, Some(&lower)).1 {
        Err(Problem::Refused(why)) => assert!(why.contains("does not exist"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sparse_files_have_holes() {
    let mut tar = archive();
    tar.append_pax_extensions([("GNU.sparse.size", &b"1000000000"[..]), ("GNU.sparse.map", b"500000000,4")]).unwrap();
    file(&mut tar, "sparse", "data");
    let mut bench = Bench::new();
    let target = bench.good(tar);
    let data = fs::metadata(target.join("sparse")).unwrap();
    assert_eq!(data.len(), 1_000_000_000);
    assert!(data.blocks() < 1000, "{}", data.blocks());
    let mut bytes = [0; 6];
    fs::File::open(target.join("sparse")).unwrap().read_exact_at(&mut bytes, 499_999_999).unwrap();
    assert_eq!(&bytes, b"\0data\0");
}

#[test]
fn odd_names_neither_crash_nor_pass_for_others() {
    let mut bench = Bench::new();
    let mut tar = archive();
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.as_old_mut().name[..4].copy_from_slice(b"\xff\xfe\n\x1b");
    header.set_cksum();
    tar.append(&header, &b""[..]).unwrap();
    assert_eq!(fs::read_dir(bench.good(tar)).unwrap().count(), 1);
    let mut tar = archive();
    let long = "n".repeat(300);
    tar.append_pax_extensions([("path", long.as_bytes())]).unwrap();
    file(&mut tar, "short", "");
    assert!(bench.refusal(tar).contains("too long"));
    let mut tar = archive();
    tar.append_pax_extensions([("path", &b"a\0b"[..])]).unwrap();
    file(&mut tar, "short", "");
    assert!(bench.refusal(tar).contains("zero byte"));
}

#[test]
fn ids_that_overflow_are_refused_and_never_root() {
    let mut bench = Bench::new();
    for uid in ["4294967295", "4294967296", "18446744073709551615"] {
        let mut tar = archive();
        tar.append_pax_extensions([("uid", uid.as_bytes())]).unwrap();
        file(&mut tar, "x", "");
        assert!(bench.refusal(tar).contains(uid));
    }
}

#[test]
fn truncated_archives_are_refused() {
    let mut tar = archive();
    file(&mut tar, "x", &"x".repeat(10_000));
    let bytes = tar.into_inner().unwrap();
    let mut bench = Bench::new();
    for cut in [100, 600, 5000] {
        assert!(matches!(bench.unpack_bytes(&bytes[..cut], Some(&[])).1, Err(Problem::Refused(_))), "{cut}");
    }
}

#[test]
fn device_nodes_need_root_and_are_left_out_without() {
    let mut tar = archive();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Char);
    header.set_size(0);
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_path("null").unwrap();
    header.set_cksum();
    tar.append(&header, &b""[..]).unwrap();
    let mut bench = Bench::new();
    let target = bench.good(tar);
    if let Ok(data) = fs::symlink_metadata(target.join("null")) {
        assert!(rustix::process::geteuid().is_root());
        assert_eq!(data.rdev(), makedev(1, 3));
    }
}
