//! Compression whose output depends on the input alone: not on the machine, the number of threads, or the size of a buffer.
//!
//! A file longer than [`PIECE`] is cut into pieces that are compressed on their own and joined where a deflate stream may be joined, at the
//! byte boundary of a flush (as pigz does), so that threads can share one file. What does not compress is found by a sample and stored.
//! This module knows neither files nor zip records.

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// How many bytes are compressed in one go. Changing it changes every digest of an archive with a longer file.
pub(crate) const PIECE: usize = 512 * 1024;

/// zlib's level: see the table in this crate's README for what others cost and gain.
const LEVEL: u32 = 3;

/// A sample must become shorter than this many 64ths of itself, or its piece is stored.
const WORTHWHILE: usize = 62;

/// Where in a piece samples are taken, and how long each is. A shorter piece is simply compressed.
const SAMPLES: usize = 4;
const SAMPLE: usize = 4 * 1024;

/// The longest stored block of a deflate stream.
const BLOCK: usize = 65_535;

/// Compresses pieces one after another; each thread has its own.
pub(crate) struct Deflater {
    full: Compress,
    quick: Compress,
    scratch: Vec<u8>,
}

impl Deflater {
    pub(crate) fn new() -> Self {
        Self {
            full: Compress::new(Compression::new(LEVEL), false),
            quick: Compress::new(Compression::new(1), false),
            scratch: Vec::with_capacity(2 * SAMPLE),
        }
    }

    /// Appends a whole file's deflate stream to `out`; false, and nothing appended, if it is not shorter than the file.
    pub(crate) fn file(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        if input.is_empty() || !self.seems_worthwhile(input) {
            return false;
        }
        run(&mut self.full, input, FlushCompress::Finish, out);
        let shorter = out.len() - start < input.len();
        if !shorter {
            out.truncate(start);
        }
        shorter
    }

    /// Appends one piece of a longer file's deflate stream to `out`.
    pub(crate) fn piece(&mut self, input: &[u8], last: bool, out: &mut Vec<u8>) {
        if self.seems_worthwhile(input) {
            let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
            run(&mut self.full, input, flush, out);
        } else {
            store(input, last, out);
        }
    }

    fn seems_worthwhile(&mut self, input: &[u8]) -> bool {
        if input.len() < 2 * SAMPLES * SAMPLE {
            return true;
        }
        let step = (input.len() - SAMPLE) / (SAMPLES - 1);
        let compressed: usize = (0..SAMPLES)
            .map(|n| {
                self.scratch.clear();
                run(&mut self.quick, &input[n * step..][..SAMPLE], FlushCompress::Finish, &mut self.scratch);
                self.scratch.len()
            })
            .sum();
        compressed * 64 < SAMPLES * SAMPLE * WORTHWHILE
    }
}

/// Compresses all of `input` as a stream of its own, or up to a byte boundary of one.
fn run(deflate: &mut Compress, input: &[u8], flush: FlushCompress, out: &mut Vec<u8>) {
    deflate.reset();
    // Room for incompressible input too, so that one call does it: the output must not depend on how full a buffer was.
    out.reserve(input.len() + input.len() / 1000 + 64);
    let start = out.len();
    let status = deflate.compress_vec(input, out, flush).expect("compressing bytes in memory cannot fail");
    let done = match flush {
        FlushCompress::Finish => status == Status::StreamEnd,
        _ => deflate.total_in() == input.len() as u64 && out.len() < out.capacity(),
    };
    assert!(done && deflate.total_out() == (out.len() - start) as u64, "room was made for the worst case");
}

/// Appends `input` as stored blocks.
fn store(input: &[u8], last: bool, out: &mut Vec<u8>) {
    let blocks = input.len().div_ceil(BLOCK);
    out.reserve(input.len() + 5 * blocks);
    for (n, block) in input.chunks(BLOCK).enumerate() {
        let length = u16::try_from(block.len()).expect("a block is that short");
        out.push(u8::from(last && n + 1 == blocks));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
}

/// The CRC-32 of some bytes.
pub(crate) fn checksum(bytes: &[u8]) -> Crc {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::DeflateDecoder;
    use proptest::prelude::*;

    use super::*;

    fn inflate(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        DeflateDecoder::new(bytes).read_to_end(&mut out).unwrap();
        out
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    #[test]
    fn pieces_join_into_one_stream() {
        let (text, noise) = (b"some text that repeats, ".repeat(20_000), noise(200_000));
        let pieces = [&text[..], &noise, &text, b"end"];
        let mut deflater = Deflater::new();
        let mut out = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            deflater.piece(piece, n + 1 == pieces.len(), &mut out);
        }
        assert_eq!(inflate(&out), pieces.concat());
        assert!(out.len() < 220_000);
    }

    #[test]
    fn what_does_not_compress_costs_five_bytes_a_block() {
        let noise = noise(PIECE);
        let mut out = Vec::new();
        Deflater::new().piece(&noise, true, &mut out);
        assert_eq!(out.len(), PIECE + 5 * PIECE.div_ceil(BLOCK));
        assert_eq!(inflate(&out), noise);
        out.clear();
        assert!(!Deflater::new().file(&noise, &mut out));
        assert!(out.is_empty());
    }

    #[test]
    fn what_a_deflater_did_before_does_not_show() {
        let mut used = Deflater::new();
        used.file(&b"quite another text ".repeat(5000), &mut Vec::new());
        let input = b"the text, the text, another text".repeat(300);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        assert!(used.file(&input, &mut first));
        assert!(Deflater::new().file(&input, &mut second));
        assert_eq!(first, second);
    }

    proptest! {
        #[test]
        fn a_file_comes_back(words in prop::collection::vec("[a-c]{1,4}", 0..400), tail: Vec<u8>) {
            let input = [words.concat().into_bytes(), tail].concat();
            let mut out = b"before".to_vec();
            if Deflater::new().file(&input, &mut out) {
                prop_assert!(out.len() - 6 < input.len());
                prop_assert_eq!(inflate(&out[6..]), input);
            } else {
                prop_assert_eq!(out, b"before");
            }
        }
    }
}
