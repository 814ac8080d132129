//! Layers as they are packed: plain, gzip or zstd, told by their first bytes, as Docker does whatever the type says.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::bounds::{FREE_EXPANSION, LARGEST_LAYER, MOST_EXPANSION};

/// Size of reads of what is packed.
const BUFFER: usize = 128 << 10;
/// Largest window of a zstd frame, in bytes: what `zstd --ultra --long=27` writes, and decoders accept by default.
const LARGEST_WINDOW: u64 = 128 << 20;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Frames to be skipped, by their last three bytes; the first one is 0x50 to 0x5f.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
/// Compressions that images do not use, with what they are called.
const OTHERS: &[(&[u8], &str)] = &[(b"BZh", "bzip2"), (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"), (b"PK\x03\x04", "zip")];

/// Unpacks what is packed.
///
/// # Errors
/// It can't be read, or is packed in a way that images do not use.
pub fn unpacked<'a>(packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut packed = BufReader::with_capacity(BUFFER, packed);
    // A pipe may give less at first; files, which these are, do not.
    let start = packed.fill_buf()?;
    if start.starts_with(GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(packed)));
    }
    if start.starts_with(ZSTD) || is_skippable(start) {
        return Ok(Box::new(Zstd::Between(packed)));
    }
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is packed with {name}, not with gzip or zstd"),
        ));
    }
    Ok(Box::new(packed))
}

fn is_skippable(start: &[u8]) -> bool {
    matches!(start.split_first(), Some((0x50..=0x5f, rest)) if rest.starts_with(ZSTD_SKIPPABLE))
}

/// Frames of zstd one after the other.
enum Zstd<R: BufRead> {
    Between(R),
    In(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    Broken,
}

impl<R: BufRead> Zstd<R> {
    /// Goes into the next frame; false at the end.
    fn next_frame(&mut self, mut packed: R) -> io::Result<bool> {
        loop {
            let start = packed.fill_buf()?;
            if start.is_empty() {
                *self = Self::Between(packed);
                return Ok(false);
            }
            if !is_skippable(start) {
                break;
            }
            let mut head = [0; 8];
            packed.read_exact(&mut head)?;
            let [_, _, _, _, length @ ..] = head;
            let length = u64::from(u32::from_le_bytes(length));
            if io::copy(&mut packed.by_ref().take(length), &mut io::sink())? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let decoder = StreamingDecoder::new_with_max_window_size(packed, LARGEST_WINDOW)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        *self = Self::In(Box::new(decoder));
        Ok(true)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Broken) {
                Self::Between(packed) => {
                    if !self.next_frame(packed)? {
                        return Ok(0);
                    }
                }
                Self::In(mut decoder) => {
                    let read = decoder.read(buffer)?;
                    if read > 0 || buffer.is_empty() {
                        *self = Self::In(decoder);
                        return Ok(read);
                    }
                    *self = Self::Between(decoder.into_inner());
                }
                Self::Broken => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// Ends a stream that grows beyond what a layer may be (a "zip bomb").
pub struct Bounded<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R> Bounded<R> {
    /// Bounds what is unpacked from this many packed bytes.
    pub fn new(inner: R, packed: u64) -> Self {
        let most = packed.saturating_mul(MOST_EXPANSION).saturating_add(FREE_EXPANSION).min(LARGEST_LAYER);
        Self { inner, left: most, most }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                let why = format!("it unpacks to more than {} bytes, which is out of proportion", self.most);
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        unpacked(packed)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn every_packing_is_read_and_parts_follow_each_other() {
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&[gzip(b"a"), gzip(b"b")].concat()).unwrap(), b"ab");
        let zstd = |bytes: &[u8]| compress_to_vec(bytes, CompressionLevel::Fastest);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frames = [skipped.clone(), zstd(b"a"), skipped.clone(), zstd(&[b'b'; 300_000]), skipped];
        assert_eq!(read(&frames.concat()).unwrap().len(), 300_001);
    }

    #[test]
    fn what_is_cut_or_broken_is_an_error() {
        let packed = gzip(&[7; 100_000]);
        assert!(read(&packed[..packed.len() - 9]).is_err());
        let packed = compress_to_vec(&[7; 100_000][..], CompressionLevel::Fastest);
        assert!(read(&packed[..packed.len() - 2]).is_err());
        assert!(read(&[0x50, 0x2a, 0x4d, 0x18, 255, 255, 255, 255]).is_err());
        assert!(read(b"BZh91AY").unwrap_err().to_string().contains("bzip2"));
    }

    #[test]
    fn what_grows_out_of_proportion_ends() {
        let mut bounded = Bounded { inner: io::repeat(0), left: 1000, most: 1000 };
        let mut bytes = Vec::new();
        assert_eq!(bounded.read_to_end(&mut bytes).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(Bounded::new(io::empty(), u64::MAX).most, LARGEST_LAYER);
        assert_eq!(Bounded::new(io::empty(), 10).most, FREE_EXPANSION + 10 * MOST_EXPANSION);
    }
}
