//! Any input gives a value or problems with positions, never a panic.

use std::path::Path;

use evenkeel::spec::{ParsedFile, merge, parse, parse_bytes};
use proptest::prelude::*;

/// What holds for every file, good or bad.
fn check(file: &ParsedFile, bytes: &[u8]) {
    let lines = bytes.split(|b| *b == b'\n').count() as u32 + bytes.iter().filter(|b| **b == b'\r').count() as u32;
    for problem in &file.problems {
        assert!(problem.position.line >= 1 && problem.position.column >= 1, "{problem}");
        assert!(problem.position.line <= lines + 1, "{problem} is beyond the end");
        assert!(!problem.message.is_empty());
    }
    assert!(file.problems.is_sorted_by_key(|problem| problem.position));
    let merged = merge(&[("a.yaml".into(), file.clone())]);
    assert!(merged.deployments.keys().all(|name| !merged.refused.contains_key(name)));
}

/// Pieces of specs, good and bad, to be put together at random.
const PIECES: &[&str] = &[
    "version: v1\n",
    "deployment: d\n",
    "services:\n",
    "  web:\n",
    "    image: { name: nginx }\n",
    "image",
    ": ",
    "- ",
    "&a ",
    "*a",
    "<<: ",
    "---\n",
    "...\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    "'",
    "\"",
    "\n",
    "  ",
    "\t",
    "#",
    "|\n",
    ">-\n",
    "!!str ",
    "!x ",
    "? ",
    "%YAML 1.2\n",
    "env: ",
    "scale: ",
    "mode: fixed",
    "health:",
    "check:",
    "type: tcp",
    "port: 0",
    "x-y: 1\n",
    "null",
    "~",
    "0x",
    "1e999",
    "\u{feff}",
    "é",
    "\r\n",
    "service: s\n",
    "depends: [{ service: web }]\n",
    "\\",
];

fn pieces() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(PIECES), 0..60).prop_map(|pieces| pieces.concat())
}

/// A valid spec with one piece of it cut out or put somewhere else.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let text = include_str!("valid/everything.yaml").as_bytes();
    (0..text.len(), 0..200_usize, 0..text.len(), any::<u8>()).prop_map(move |(from, length, to, byte)| {
        let mut bytes = text.to_vec();
        let cut: Vec<u8> = bytes.drain(from..(from + length).min(text.len())).collect();
        let to = to.min(bytes.len());
        bytes.splice(to..to, cut);
        if to < bytes.len() {
            bytes[to] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check(&parse_bytes(&bytes), &bytes);
    }

    #[test]
    fn any_mixture_of_pieces_is_read(text in pieces()) {
        check(&parse(&text), text.as_bytes());
    }

    #[test]
    fn any_damage_to_a_good_file_is_read(bytes in damaged()) {
        check(&parse_bytes(&bytes), &bytes);
    }

    /// A file that stops in the middle of a line, as while it is being written.
    #[test]
    fn any_beginning_of_a_good_file_is_read(length in 0..include_str!("valid/everything.yaml").len()) {
        let bytes = &include_str!("valid/everything.yaml").as_bytes()[..length];
        check(&parse_bytes(bytes), bytes);
    }
}

#[test]
fn the_corpus_of_the_fuzz_target_is_read() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parse");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        check(&parse_bytes(&bytes), &bytes);
        seen += 1;
    }
    assert!(seen > 0, "the corpus is empty");
}
