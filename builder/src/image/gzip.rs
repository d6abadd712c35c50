//! gzip on all cores: what is written is cut into pieces of one length, each compressed by itself, one behind the other.
//!
//! Each is kept too, so that a package that was in an environment before is not compressed again.
//! Members that follow one another are one file of all their contents (RFC 1952 §2.2), as every reader of images knows it. Where a piece
//! ends depends on the content alone, and so does the result.

use std::{
    collections::VecDeque,
    io::{self, Write},
    mem,
    num::NonZeroUsize,
    thread::{self, JoinHandle},
};

use flate2::{Compression, write::GzEncoder};
use proto::id::Digest;
use sha2::{Digest as _, Sha256};

use crate::kept::Kept;

/// The length of a piece in bytes: long enough to lose nothing by its own dictionary.
const PIECE: usize = 4 << 20;
/// The first level that finds more than repetition, at half the time of the usual one: 106 MB for 346 MB of packages, where that has 104.
const LEVEL: Compression = Compression::new(2);
/// More threads than this would wait for the disk, and each holds two pieces.
const MOST_THREADS: usize = 8;

/// A writer whose content arrives compressed at another.
pub(super) struct Gzip<W> {
    writer: W,
    piece: Vec<u8>,
    /// The oldest first, in whose order they are written.
    compressing: VecDeque<JoinHandle<io::Result<Vec<u8>>>>,
    threads: usize,
    kept: Kept,
}

impl<W: Write> Gzip<W> {
    pub(super) fn new(writer: W, kept: &Kept) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS);
        Self { writer, piece: Vec::with_capacity(PIECE), compressing: VecDeque::new(), threads, kept: kept.clone() }
    }

    /// Ends a piece: what follows is in other files too.
    ///
    /// # Errors
    ///
    /// Fails when the writer does or no thread can be had.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.compress() }
    }

    /// Waits for the last piece and returns what all was written to.
    ///
    /// # Errors
    ///
    /// Fails when the writer does or no thread can be had.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.compress()?;
        while self.write_oldest()? {}
        Ok(self.writer)
    }

    fn compress(&mut self) -> io::Result<()> {
        let piece = mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let kept = self.kept.clone();
        let work = move || {
            let name = format!("{}.gz", Digest::from_sha256(Sha256::digest(&piece).into()).hex());
            if let Some(known) = kept.read(&name) {
                return Ok(known);
            }
            let mut encoder = GzEncoder::new(Vec::with_capacity(piece.len() / 2), LEVEL);
            encoder.write_all(&piece)?;
            let compressed = encoder.finish()?;
            kept.write(&name, &compressed);
            Ok(compressed)
        };
        self.compressing.push_back(thread::Builder::new().name("kaai-gzip".to_owned()).spawn(work)?);
        // Whoever writes hashes and reads meanwhile, and is not waited for by the threads.
        if self.compressing.len() > self.threads {
            self.write_oldest()?;
        }
        Ok(())
    }

    fn write_oldest(&mut self) -> io::Result<bool> {
        let Some(oldest) = self.compressing.pop_front() else { return Ok(false) };
        let compressed =
            oldest.join().unwrap_or_else(|_| Err(io::Error::other("a thread that compresses has ended")))?;
        self.writer.write_all(&compressed)?;
        Ok(true)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..length]);
        if self.piece.len() == PIECE {
            self.compress()?;
        }
        Ok(length)
    }

    /// Does nothing: a piece is not cut short.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::MultiGzDecoder;

    use super::*;

    fn kept() -> (tempfile::TempDir, Kept) {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::open(folder.path(), folder.path()).unwrap();
        (folder, kept)
    }

    fn compressed(content: &[u8], at_a_time: usize) -> Vec<u8> {
        let (_folder, kept) = kept();
        let mut gzip = Gzip::new(Vec::new(), &kept);
        content.chunks(at_a_time).for_each(|bytes| gzip.write_all(bytes).unwrap());
        gzip.finish().unwrap()
    }

    #[test]
    fn many_pieces_are_one_file_in_their_order() {
        let content: Vec<u8> = (0..5 * PIECE as u32 / 2).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let whole = compressed(&content, 1 << 16);
        let mut read = Vec::new();
        MultiGzDecoder::new(whole.as_slice()).read_to_end(&mut read).unwrap();
        assert!(read == content, "{} bytes, not {}", read.len(), content.len());
        assert!(whole == compressed(&content, 999_983), "how it was written has left a trace");
    }

    #[test]
    fn a_piece_that_was_compressed_before_is_taken() {
        let (_folder, kept) = kept();
        let compress = |parts: &[&[u8]]| {
            let mut gzip = Gzip::new(Vec::new(), &kept);
            for part in parts {
                gzip.cut().unwrap();
                gzip.write_all(part).unwrap();
            }
            gzip.finish().unwrap()
        };
        let first = compress(&[b"one", b"two"]);
        assert_eq!(compress(&[b"one", b"two"]), first);
        let name = format!("{}.gz", Digest::from_sha256(Sha256::digest(b"two").into()).hex());
        kept.write(&name, b"known");
        assert!(compress(&[b"another", b"two"]).ends_with(b"known"));
        assert!(!compress(&[b"another", b"two", b"!"]).ends_with(b"known"));
    }

    #[test]
    fn nothing_is_an_empty_file() {
        let mut read = Vec::new();
        MultiGzDecoder::new(compressed(&[], 1).as_slice()).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"");
    }

    #[test]
    fn a_writer_that_fails_is_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (_folder, kept) = kept();
        let mut gzip = Gzip::new(Full, &kept);
        gzip.write_all(b"x").unwrap();
        assert_eq!(gzip.finish().err().map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
    }
}
