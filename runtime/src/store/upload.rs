//! Files into a store: a small one at once, a large one in parts.

use std::{path::Path as FilePath, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use super::{Error, file_error, path, write_error};

/// The length of a part; S3 takes none below 5 MiB but the last.
pub(super) const PART: u64 = 8 << 20;
/// S3 takes 10 000 parts; a file may grow a little while it is read.
const MOST_PARTS: u64 = 9_000;
/// How many parts are on their way at a time.
const AT_ONCE: usize = 3;
/// How long it may take to take back the parts of an upload that failed.
const ABORT: Duration = Duration::from_secs(10);

/// Stores a file under a key. When this fails, nothing of it is left.
pub(super) async fn file(store: &Arc<dyn ObjectStore>, key: &str, file: &FilePath) -> Result<(), Error> {
    let failed = |source| file_error(file, source);
    let mut reader = File::open(file).await.map_err(failed)?;
    let length = part_length(reader.metadata().await.map_err(failed)?.len());
    let first = part(&mut reader, length).await.map_err(failed)?;
    if (first.len() as u64) < length {
        let stored = store.put(&path(key)?, first.into()).await;
        return stored.map(drop).map_err(|source| write_error(key, source));
    }
    let mut upload = store.put_multipart(&path(key)?).await.map_err(|source| write_error(key, source))?;
    let sent = parts(upload.as_mut(), first, &mut reader, length).await;
    let error = match sent {
        Ok(()) => return Ok(()),
        Err(Failed::File(source)) => file_error(file, source),
        Err(Failed::Store(source)) => write_error(key, source),
    };
    // The error that is returned says more than one of tidying up could.
    if !matches!(timeout(ABORT, upload.abort()).await, Ok(Ok(()))) {
        tracing::warn!(key, "parts of an upload that failed are left in the store until it forgets them");
    }
    Err(error)
}

enum Failed {
    File(std::io::Error),
    Store(object_store::Error),
}

async fn parts(
    upload: &mut dyn MultipartUpload,
    first: Bytes,
    reader: &mut (impl AsyncRead + Unpin),
    length: u64,
) -> Result<(), Failed> {
    let mut sending = FuturesUnordered::new();
    let mut next = first;
    while !next.is_empty() {
        let last = (next.len() as u64) < length;
        sending.push(upload.put_part(next.into()));
        while sending.len() >= AT_ONCE {
            sending.next().await.transpose().map_err(Failed::Store)?;
        }
        next = if last { Bytes::new() } else { part(reader, length).await.map_err(Failed::File)? };
    }
    while let Some(sent) = sending.next().await {
        sent.map_err(Failed::Store)?;
    }
    upload.complete().await.map(drop).map_err(Failed::Store)
}

/// The next part of a file: shorter than `length` only at its end.
async fn part(reader: &mut (impl AsyncRead + Unpin), length: u64) -> std::io::Result<Bytes> {
    let mut bytes = Vec::new();
    reader.take(length).read_to_end(&mut bytes).await?;
    Ok(bytes.into())
}

/// Parts of a whole number of MiB, so that there are not too many.
fn part_length(size: u64) -> u64 {
    size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20).max(PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_archive_has_no_more_parts_than_a_store_takes() {
        for gib in [0, 1, 64, 100, 1000] {
            let size = gib << 30;
            let length = part_length(size);
            assert!(length >= 5 << 20 && size.div_ceil(length) <= MOST_PARTS, "{gib} GiB: {length}");
        }
    }
}
