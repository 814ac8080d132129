use tar::{Builder, EntryType};

use super::*;

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header
}

fn block(header: &mut Header, path: &str) -> Vec<u8> {
    header.set_path(path).unwrap();
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// An extended header with these records.
fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        body.extend([length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat());
    }
    [block(&mut header(EntryType::XHeader, body.len() as u64), "pax"), padded(&body)].concat()
}

fn file(path: &str, content: &[u8]) -> Vec<u8> {
    [block(&mut header(EntryType::Regular, content.len() as u64), path), padded(content)].concat()
}

/// Every entry with its content.
fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(archive);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match reader.read_content(&mut buffer)? {
                0 => break,
                read => content.extend_from_slice(&buffer[..read]),
            }
        }
        found.push((entry, content));
    }
    Ok(found)
}

fn paths(archive: &[u8]) -> Vec<String> {
    read(archive).unwrap().into_iter().map(|(entry, _)| String::from_utf8(entry.path).unwrap()).collect()
}

#[test]
fn plain_archives_are_read_with_and_without_an_end() {
    let mut archive = file("a", b"one");
    let (entry, content) = read(&archive).unwrap().remove(0);
    assert_eq!((entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime), (Kind::File, 0o644, 1, 2, (3, 0)));
    assert_eq!((entry.size, content.as_slice()), (3, &b"one"[..]));
    archive.extend([0; 1024]);
    archive.extend(b"rubbish after the end");
    assert_eq!(paths(&archive), ["a"]);
}

#[test]
fn long_names_of_both_kinds_are_read() {
    let long = "d/".repeat(200) + "file";
    let mut builder = Builder::new(Vec::new());
    let mut gnu = Header::new_gnu();
    gnu.set_size(1);
    builder.append_data(&mut gnu, &long, &b"x"[..]).unwrap();
    assert_eq!(paths(&builder.into_inner().unwrap()), std::slice::from_ref(&long));
    let archive = [pax(&[("path", long.as_bytes())]), file("short", b"x")].concat();
    assert_eq!(paths(&archive), [long]);
}

/// An entry whose extended header gives another size than its header: one reader would take the content for entries.
#[test]
fn the_extended_size_decides_where_the_next_entry_is() {
    let hidden = file("hidden", b"");
    let archive = [
        pax(&[("size", hidden.len().to_string().as_bytes())]),
        block(&mut header(EntryType::Regular, 0), "outer"),
        hidden,
        file("next", b""),
    ];
    assert_eq!(paths(&archive.concat()), ["outer", "next"]);
    // It holds for the next entry, not for a long name in between.
    let archive = [
        pax(&[("size", b"3")]),
        block(&mut header(EntryType::new(b'L'), 5), "x"),
        padded(b"long\0"),
        block(&mut header(EntryType::Regular, 0), "outer"),
        padded(b"abc"),
        file("next", b""),
    ];
    assert_eq!(paths(&archive.concat()), ["long", "next"]);
}

#[test]
fn entries_without_content_have_none_whatever_is_written() {
    for kind in [EntryType::Directory, EntryType::Symlink, EntryType::Link, EntryType::Fifo] {
        let archive = [block(&mut header(kind, 4096), "x"), file("next", b"")].concat();
        assert_eq!(paths(&archive), ["x", "next"]);
    }
}

#[test]
fn attributes_may_hold_line_ends_and_the_last_value_holds() {
    let value = b"a\n12 fake=x\nb";
    let archive =
        [pax(&[("SCHILY.xattr.user.x", b"old"), ("SCHILY.xattr.user.x", value), ("mtime", b"-1.25")]), file("a", b"")];
    let (entry, _) = read(&archive.concat()).unwrap().remove(0);
    assert_eq!(entry.xattrs, [(b"user.x".to_vec(), value.to_vec())]);
    assert_eq!(entry.mtime, (-2, 750_000_000));
}

#[test]
fn an_entry_has_a_bounded_number_of_attributes() {
    let names: Vec<String> = (0..=MOST_ATTRIBUTES).map(|number| format!("SCHILY.xattr.user.{number:06}")).collect();
    let with = |records: &[(&str, &[u8])]| read(&[pax(records), file("a", b"")].concat());
    let mut records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let error = with(&records).unwrap_err().to_string();
    assert_eq!(error, "an entry has more than 1024 extended attributes");
    // One that comes again is no further one.
    records.pop();
    records.push((&names[0], b"y"));
    let (entry, _) = with(&records).unwrap().remove(0);
    assert_eq!(entry.xattrs.len(), MOST_ATTRIBUTES);
    assert_eq!(entry.xattrs[0], (b"user.000000".to_vec(), b"y".to_vec()));
}

#[test]
fn sparse_files_of_every_format_are_read() {
    let wanted = [Segment { offset: 0, length: 2 }, Segment { offset: 1000, length: 3 }];
    let one = [
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", b"1003"),
        ]),
        block(&mut header(EntryType::Regular, 512 + 5), "GNUSparseFile.1/real"),
        padded(b"2\n0\n2\n1000\n3\n"),
        padded(b"abcde"),
    ];
    let zero_one = [
        pax(&[("GNU.sparse.size", b"1003"), ("GNU.sparse.map", b"0,2,1000,3"), ("GNU.sparse.name", b"real")]),
        file("x", b"abcde"),
    ];
    let numbers: [(&str, &[u8]); 5] = [
        ("GNU.sparse.size", b"1003"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"3"),
    ];
    let zero = [pax(&numbers), file("real", b"abcde")];
    let mut old = Header::new_gnu();
    old.set_entry_type(EntryType::GNUSparse);
    old.set_size(5);
    for header in [&mut old] {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(1003);
        for (piece, wanted) in gnu.sparse.iter_mut().zip(wanted) {
            piece.set_offset(wanted.offset);
            piece.set_length(wanted.length);
        }
    }
    let old = [block(&mut old, "real"), padded(b"abcde")];
    for archive in [one.concat(), zero_one.concat(), zero.concat(), old.concat()] {
        let mut archive = archive;
        archive.extend(file("next", b""));
        let read = read(&archive).unwrap();
        let (entry, content) = &read[0];
        assert_eq!((entry.path.as_slice(), entry.size, content.as_slice()), (&b"real"[..], 1003, &b"abcde"[..]));
        assert_eq!(entry.sparse.as_deref(), Some(&wanted[..]));
        assert_eq!(read[1].0.path, b"next");
    }
}

#[test]
fn wrong_maps_of_sparse_files_are_refused() {
    for map in ["0,9,5,1", "5,1,0,1", "0,4", "0,6", "0,5,x", "0,5,7", "18446744073709551615,5"] {
        let archive = [pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", map.as_bytes())]), file("x", b"abcde")];
        assert!(matches!(read(&archive.concat()), Err(TarError::Malformed(_))), "{map}");
    }
    for map in ["", "99999999\n", "2\n0\n2\n", "1\n0\n5\n9\n", "a\n"] {
        let archive = [
            pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"10")]),
            block(&mut header(EntryType::Regular, 512 + 5), "x"),
            padded(&[map.as_bytes(), &[0]].concat()),
            padded(b"abcde"),
        ];
        assert!(matches!(read(&archive.concat()), Err(TarError::Malformed(_))), "{map}");
    }
}

#[test]
fn damaged_archives_are_refused() {
    let good = file("a", b"one");
    for cut in [1, 511, 513, 1000] {
        assert!(read(&good[..cut]).is_err(), "{cut}");
    }
    let mut wrong = good.clone();
    wrong[0] = b'b';
    assert!(read(&wrong).unwrap_err().to_string().contains("checksum"));
    let gap = [vec![0; 512], good].concat();
    assert!(read(&gap).is_err());
    let huge = block(&mut header(EntryType::XHeader, 1 << 40), "x");
    assert!(read(&huge).unwrap_err().to_string().contains("1099511627776 bytes"));
    for body in [&b"5 a=b\n"[..], b"99 a=b\n", b"x a=b\n", b"6 =ab\n", b"6 a=bc", b"6a=bc\n", b"7 size=x"] {
        let archive = [block(&mut header(EntryType::XHeader, body.len() as u64), "x"), padded(body), file("a", b"")];
        assert!(matches!(read(&archive.concat()), Err(TarError::Malformed(_))), "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    assert_eq!(names(b"./a//b/./c/").unwrap(), [b"a", b"b", b"c"]);
    assert_eq!(names(b"/etc/passwd").unwrap(), [&b"etc"[..], b"passwd"]);
    assert_eq!(names(b"./").unwrap(), Vec::<&[u8]>::new());
    for path in [&b"../a"[..], b"a/../../b", b"a/..", b"a\0b", &[b'a'; 5000]] {
        assert!(names(path).is_err());
    }
}

#[test]
fn numbers_of_every_form_are_read() {
    for (field, wanted) in [
        (&b"0000644\0"[..], Some(0o644)),
        (b"    644 ", Some(0o644)),
        (b"\0\0\0\0", Some(0)),
        (b"", Some(0)),
        (b"\x80\0\0\0\0\0\0\x01\0\0\0\0", Some(1 << 32)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"8", None),
        (b"12x", None),
    ] {
        assert_eq!(number(field, "x").ok(), wanted, "{field:?}");
    }
}
