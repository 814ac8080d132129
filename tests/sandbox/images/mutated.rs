//! Archives of layers that were changed at random: each gives a layer or a reason, and nothing outside of its directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use evenkeel::runtime::sandbox::unpack_layer;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Size of headers and of pieces of content.
const BLOCK: usize = 512;
/// Longest time that an archive of some kilobytes may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Fields of a header: where they begin and how long they are.
const NAME: (usize, usize) = (0, 100);
const SIZE: (usize, usize) = (124, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const LINK: (usize, usize) = (157, 100);
const DEVICE: (usize, usize) = (329, 16);
const PREFIX: (usize, usize) = (345, 155);
const KIND: usize = 156;
/// Names that lead elsewhere, mean something to layers, or are none.
const NAMES: &[&str] = &[
    "../beside",
    "/beside",
    "a/../../beside",
    "..",
    ".",
    "",
    "/",
    "d",
    "d/file",
    "hard",
    "soft",
    "soft/x",
    "up/beside",
    "abs/x",
    ".wh.d",
    ".wh.",
    ".wh...",
    ".wh..wh..opq",
    "d/.wh..wh..opq",
    ".wh..wh.plnk",
    "a//b",
    "d/file/x",
];
/// Numbers in octal and otherwise.
const NUMBERS: &[&[u8]] = &[
    b"00000000000",
    b"00000000001",
    b"00000001000",
    b"77777777777",
    b"-1",
    b"zz",
    b"",
    b"\x80\0\0\0\0\0\0\0\0\0\x02\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
];

/// Archives of the fuzz target, with their names.
fn named() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/unpack");
    let files = fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

/// One change.
#[derive(Debug, Clone)]
enum Change {
    Byte(Index, u8),
    Field(Index, (usize, usize), Vec<u8>),
    Kind(Index, u8),
    Repeat(Index, Index),
    Remove(Index),
    Swap(Index, Index),
    Truncate(Index),
    /// All of another archive follows.
    Append(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let names = select(NAMES).prop_map(|name| [name.as_bytes(), b"\0"].concat());
    let numbers = select(NUMBERS).prop_map(<[u8]>::to_vec);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (any::<Index>(), select(&[NAME, LINK, PREFIX][..]), names)
            .prop_map(|(at, field, text)| Change::Field(at, field, text)),
        (any::<Index>(), select(&[SIZE, DEVICE][..]), numbers)
            .prop_map(|(at, field, text)| Change::Field(at, field, text)),
        (any::<Index>(), select(&b"\x0001234567LKSxgVND"[..])).prop_map(|(at, kind)| Change::Kind(at, kind)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Repeat(from, to)),
        any::<Index>().prop_map(Change::Remove),
        (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Change::Swap(one, other)),
        any::<Index>().prop_map(Change::Truncate),
        any::<Index>().prop_map(Change::Append),
    ]
}

fn is_header(block: &[u8]) -> bool {
    block.get(257..262) == Some(b"ustar")
}

impl Change {
    fn apply(&self, archive: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let headers: Vec<usize> =
            (0..archive.len() / BLOCK).map(|at| at * BLOCK).filter(|at| is_header(&archive[*at..])).collect();
        if archive.len() < BLOCK || headers.is_empty() {
            return;
        }
        let block = |index: &Index, archive: &[u8]| index.index(archive.len() / BLOCK) * BLOCK;
        match self {
            Self::Byte(at, byte) => *at.get_mut(archive) = *byte,
            Self::Field(at, (start, length), text) => {
                let start = at.get(&headers) + start;
                let length = text.len().min(*length);
                archive[start..start + length].copy_from_slice(&text[..length]);
            }
            Self::Kind(at, kind) => archive[at.get(&headers) + KIND] = *kind,
            Self::Repeat(from, to) => {
                let (from, to) = (block(from, archive), block(to, archive));
                let copy = archive[from..from + BLOCK].to_vec();
                archive.splice(to..to, copy);
            }
            Self::Remove(at) => {
                let at = block(at, archive);
                archive.drain(at..at + BLOCK);
            }
            Self::Swap(one, other) => {
                let (one, other) = (block(one, archive), block(other, archive));
                for offset in 0..BLOCK {
                    archive.swap(one + offset, other + offset);
                }
            }
            Self::Truncate(at) => archive.truncate(at.index(archive.len())),
            Self::Append(which) => {
                let end = archive.iter().rposition(|byte| *byte != 0).map_or(0, |last| (last / BLOCK + 1) * BLOCK);
                archive.truncate(end);
                archive.extend(which.get(corpus));
            }
        }
    }
}

/// Writes right sums, so that what was changed is looked at.
fn sum_up(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(BLOCK).filter(|block| is_header(block)) {
        let (start, length) = CHECKSUM;
        block[start..start + length].fill(b' ');
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[start..start + length].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Unpacks an archive beside a file that must not change. Gives what was said against it.
fn unpack(archive: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let (layer, beside) = (folder.path().join("layer"), folder.path().join("beside"));
    fs::create_dir(&layer).unwrap();
    fs::write(&beside, "beside").unwrap();
    let begin = Instant::now();
    let result = unpack_layer(archive, &layer);
    assert!(begin.elapsed() < LIMIT, "it took {:?}", begin.elapsed());
    assert_eq!(fs::read(&beside).unwrap(), b"beside");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(&beside).unwrap()), 1, "no further name of it");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert!(!Path::new("/beside").exists());
    assert!(result.as_ref().err().is_none_or(|why| !why.is_empty()), "it says why");
    result
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_archive_gives_a_layer_or_a_reason(
        which in any::<Index>(),
        changes in prop::collection::vec(change(), 1..8),
        is_summed in prop::bool::weighted(0.9),
    ) {
        let corpus: Vec<Vec<u8>> = named().into_values().collect();
        let mut archive = which.get(&corpus).clone();
        for change in &changes {
            change.apply(&mut archive, &corpus);
        }
        if is_summed {
            sum_up(&mut archive);
        }
        let _ = unpack(&archive);
    }
}

#[test]
fn the_corpus_of_the_fuzz_target_is_unpacked_or_refused() {
    let refused = named().into_iter().filter_map(|(name, archive)| Some((name, unpack(&archive).err()?)));
    let refused: Vec<String> = refused.map(|(name, why)| format!("{name}: {why}")).collect();
    let expected = [
        "devices: the entry \"mark\" is refused: it is a device that marks removed files on this machine",
        "traversal: the entry \"../beside\" is refused: its name leads upwards",
        "traversal-hard-link: the entry \"hard\" is refused: its target leads upwards",
        "truncated: the archive ends in the middle of a block",
        "whiteouts: the entry \".wh...\" is refused: it removes nothing that has a name",
    ];
    assert_eq!(refused, expected);
}
