//! Archives from machines that have only the bus: a ticket, pieces, and a check of the whole against its digest.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use proto::{
    id::Digest,
    query::{Refusal, UploadDone, UploadRoute, UploadTicket},
    subject,
};
use runtime::{
    bus::Bus,
    pieces::{PIECE, Pieces},
    store::archive_key,
};
use sha2::{Digest as _, Sha256};

use crate::{
    shelf::Shelf,
    trouble::{refused_by_folder, refused_by_shelf, refused_by_store, unavailable},
};

/// Takes uploads.
#[derive(Clone)]
pub(crate) struct Uploads {
    pieces: Pieces,
    shelf: Shelf,
    max: u64,
}

impl Uploads {
    pub(crate) async fn open(bus: &Bus, shelf: Shelf, max: u64) -> Result<Self, runtime::bus::Error> {
        Ok(Self { pieces: bus.pieces(subject::UPLOADS).await?, shelf, max })
    }

    /// Says how an archive should be sent, and what of it is there already.
    pub(crate) async fn ticket(&self, wanted: &UploadTicket) -> Result<UploadRoute, Refusal> {
        if wanted.size > self.max {
            return Err(self.too_long(wanted.size));
        }
        if self.is_there(&wanted.digest, wanted.size).await? {
            return Ok(UploadRoute::Present);
        }
        let prefix = format!("{}/", wanted.digest.hex());
        let there = self.pieces.list(&prefix).await.map_err(|error| unavailable(error.to_string(), "try again"))?;
        let mut present: Vec<u32> = there
            .into_iter()
            .filter_map(|(name, length)| Some((name.strip_prefix(&prefix)?.parse().ok()?, length)))
            .filter(|&(number, length)| length == piece_length(wanted.size, number))
            .map(|(number, _)| number)
            .collect();
        present.sort_unstable();
        Ok(UploadRoute::Pieces { bucket: subject::UPLOADS.to_owned(), piece_size: PIECE, present })
    }

    /// Puts the pieces together, checks the whole, stores it, and takes the pieces away. Asked again afterwards, it is there already.
    pub(crate) async fn done(&self, sent: &UploadDone, work: &Path) -> Result<(), Refusal> {
        if sent.size > self.max {
            return Err(self.too_long(sent.size));
        }
        if self.is_there(&sent.digest, sent.size).await? {
            return Ok(());
        }
        let failed = |error: io::Error| refused_by_folder(work, &error);
        let mut whole = tempfile::NamedTempFile::new_in(work).map_err(failed)?;
        let count = piece_count(sent.size);
        let mut hash = Sha256::new();
        for number in 0..count {
            let name = piece_name(&sent.digest, number);
            let piece = self.pieces.get(&name).await.map_err(|error| unavailable(error.to_string(), "try again"))?;
            let Some(piece) = piece.filter(|piece| piece.len() as u64 == piece_length(sent.size, number)) else {
                // Asked twice, the other answer may have stored the whole and taken the pieces away meanwhile.
                if self.is_there(&sent.digest, sent.size).await? {
                    return Ok(());
                }
                let cause = format!("piece {number} of {count} has not come");
                return Err(Refusal::new("conflict", cause, "send what is missing: ask for a ticket again"));
            };
            hash.update(&piece);
            whole.as_file_mut().write_all(&piece).map_err(failed)?;
        }
        let digest = Digest::from_sha256(hash.finalize().into());
        if digest != sent.digest {
            self.forget(&sent.digest, count).await;
            let cause = format!("what came has the digest {digest}, not {}", sent.digest);
            return Err(Refusal::new("invalid", cause, "send it again from the beginning"));
        }
        check_zip(whole.path()).await?;
        let key = archive_key(&sent.digest);
        self.shelf.store.put_file(&key, whole.path()).await.map_err(|error| refused_by_store(&error))?;
        self.forget(&sent.digest, count).await;
        Ok(())
    }

    async fn is_there(&self, digest: &Digest, size: u64) -> Result<bool, Refusal> {
        self.shelf.has(digest, size).await.map_err(|error| refused_by_shelf(&error))
    }

    fn too_long(&self, size: u64) -> Refusal {
        let cause = format!("{size} bytes are more than the limit of {}", self.max);
        Refusal::new("invalid", cause, "send less, or have --max-upload-size of the packager raised")
    }

    async fn forget(&self, digest: &Digest, count: u32) {
        for number in 0..count {
            if let Err(error) = self.pieces.delete(&piece_name(digest, number)).await {
                tracing::debug!(%error, "a piece stays until it expires");
            }
        }
    }
}

/// An archive that is no zip would only be found out when a replica starts.
async fn check_zip(path: &Path) -> Result<(), Refusal> {
    let path = path.to_owned();
    let opened =
        tokio::task::spawn_blocking(move || zip::ZipArchive::new(io::BufReader::new(File::open(path)?)).map(drop))
            .await;
    match opened {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Refusal::new("invalid", format!("what came is no zip: {error}"), "send a zip")),
        Err(error) => Err(unavailable(error.to_string(), "try again")),
    }
}

/// What is in an archive that was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) files: u64,
    /// Of all files together, unpacked, as the archive says it.
    pub(crate) bytes: u64,
    pub(crate) has_script: bool,
}

/// Reads the directory of a zip, and nothing that it holds. Blocks.
pub(crate) fn contents(path: &Path, script: &str) -> Result<Contents, zip::result::ZipError> {
    let mut archive = zip::ZipArchive::new(io::BufReader::new(File::open(path)?))?;
    let mut contents = Contents { files: 0, bytes: 0, has_script: false };
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        if entry.is_dir() {
            continue;
        }
        contents.files += 1;
        contents.bytes = contents.bytes.saturating_add(entry.size());
        contents.has_script |= entry.name()?.as_ref() == script;
    }
    Ok(contents)
}

/// The name of a piece in the bus's object store.
pub fn piece_name(digest: &Digest, number: u32) -> String {
    format!("{}/{number}", digest.hex())
}

/// How many pieces an archive of `size` bytes has.
pub fn piece_count(size: u64) -> u32 {
    u32::try_from(size.div_ceil(PIECE)).unwrap_or(u32::MAX)
}

/// The length of a piece of an archive of `size` bytes; 0 for one that it does not have.
pub fn piece_length(size: u64, number: u32) -> u64 {
    size.saturating_sub(u64::from(number) * PIECE).min(PIECE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_whole() {
        for size in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17] {
            let lengths = (0..piece_count(size)).map(|number| piece_length(size, number));
            assert!(lengths.clone().all(|length| length > 0), "{size}");
            assert_eq!(lengths.sum::<u64>(), size);
            assert_eq!(piece_length(size, piece_count(size)), 0);
        }
    }
}
