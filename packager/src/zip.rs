//! The records of a zip file (PKWARE's APPNOTE 6.3.10), as bytes.
//!
//! Everything that could differ between two machines is fixed: times, owners, modes but for the executable bit. This module knows neither
//! files nor compression; numbers that do not fit into 32 bits move into zip64 fields by themselves.

/// How an entry's bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Stored,
    Deflated,
}

/// What a zip says of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) method: Method,
    pub(crate) executable: bool,
    /// Whether checksum and lengths stand behind the data, because they were not known before it.
    pub(crate) streamed: bool,
    /// Whether a streamed entry may be longer than 32 bits can say.
    pub(crate) large: bool,
    pub(crate) crc: u32,
    pub(crate) compressed: u64,
    pub(crate) size: u64,
    /// Where its local header begins.
    pub(crate) offset: u64,
}

const LOCAL_HEADER: u32 = 0x0403_4b50;
const DATA_DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;

/// 1980-01-01 00:00:00, the first moment a zip can name: time, then date.
const MOMENT: [u16; 2] = [0, (1 << 5) | 1];
/// The least version that reads plain entries, and the one that reads zip64.
const VERSION: u16 = 20;
const VERSION_64: u16 = 45;
/// Unix, so that modes are understood.
const MADE_BY: u16 = 3 << 8;
const EXTRA_64: u16 = 1;
const MAX_16: u16 = u16::MAX;
const MAX_32: u32 = u32::MAX;

/// How many bytes stand before an entry's data: the local header without the name.
pub(crate) const LOCAL_HEADER_LEN: usize = 30;

/// Appends numbers in the byte order of a zip.
trait Put {
    fn u16(&mut self, value: u16) -> &mut Self;
    fn u32(&mut self, value: u32) -> &mut Self;
    fn u64(&mut self, value: u64) -> &mut Self;
}

impl Put for Vec<u8> {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// A number as a 32-bit field says it: itself, or "look into the zip64 field".
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(MAX_32)
}

fn is_wide(value: u64) -> bool {
    narrow(value) == MAX_32
}

fn name_length(name: &str) -> u16 {
    u16::try_from(name.len()).expect("paths are shorter than 65,536 bytes on every system")
}

impl Entry {
    fn flags(&self, name: &str) -> u16 {
        let streamed = if self.streamed { 1 << 3 } else { 0 };
        let utf8 = if name.is_ascii() { 0 } else { 1 << 11 };
        streamed | utf8
    }

    fn method(&self) -> u16 {
        match self.method {
            Method::Stored => 0,
            Method::Deflated => 8,
        }
    }

    /// Appends the header that stands before the data. What is not streamed must be shorter than 4 GiB.
    pub(crate) fn put_local_header(&self, name: &str, out: &mut Vec<u8>) {
        let wide = self.streamed && self.large;
        out.u32(LOCAL_HEADER).u16(if wide { VERSION_64 } else { VERSION }).u16(self.flags(name)).u16(self.method());
        out.u16(MOMENT[0]).u16(MOMENT[1]);
        match (self.streamed, wide) {
            (true, true) => out.u32(0).u32(MAX_32).u32(MAX_32),
            (true, false) => out.u32(0).u32(0).u32(0),
            (false, _) => out.u32(self.crc).u32(narrow(self.compressed)).u32(narrow(self.size)),
        };
        out.u16(name_length(name)).u16(if wide { 20 } else { 0 });
        out.extend_from_slice(name.as_bytes());
        if wide {
            out.u16(EXTRA_64).u16(16).u64(0).u64(0);
        }
    }

    /// Appends what stands behind the data of a streamed entry.
    pub(crate) fn put_data_descriptor(&self, out: &mut Vec<u8>) {
        out.u32(DATA_DESCRIPTOR).u32(self.crc);
        if self.large {
            out.u64(self.compressed).u64(self.size);
        } else {
            out.u32(narrow(self.compressed)).u32(narrow(self.size));
        }
    }

    /// Appends the entry's line in the directory at the end of the file.
    pub(crate) fn put_central_header(&self, name: &str, out: &mut Vec<u8>) {
        // The order of the fields is the standard's.
        let wide: Vec<u64> =
            [self.size, self.compressed, self.offset].into_iter().filter(|&value| is_wide(value)).collect();
        let version = if wide.is_empty() && !self.large { VERSION } else { VERSION_64 };
        let folder = name.ends_with('/');
        let kind = if folder { 0o040_000 } else { 0o100_000 };
        let mode = kind | if folder || self.executable { 0o755 } else { 0o644 };
        let extra = if wide.is_empty() { 0 } else { 4 + 8 * wide.len() as u16 };
        out.u32(CENTRAL_HEADER).u16(MADE_BY | version).u16(version).u16(self.flags(name)).u16(self.method());
        out.u16(MOMENT[0]).u16(MOMENT[1]).u32(self.crc).u32(narrow(self.compressed)).u32(narrow(self.size));
        out.u16(name_length(name)).u16(extra).u16(0).u16(0).u16(0);
        out.u32((mode << 16) | if folder { 0x10 } else { 0 }).u32(narrow(self.offset));
        out.extend_from_slice(name.as_bytes());
        if !wide.is_empty() {
            out.u16(EXTRA_64).u16(extra - 4);
            wide.iter().for_each(|&value| {
                out.u64(value);
            });
        }
    }
}

/// The end of a zip whose directory has `entries` lines and `length` bytes and begins at `offset`.
pub(crate) fn end(entries: u64, length: u64, offset: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(98);
    let few = u16::try_from(entries).unwrap_or(MAX_16);
    if few == MAX_16 || is_wide(length) || is_wide(offset) {
        out.u32(END_64).u64(44).u16(MADE_BY | VERSION_64).u16(VERSION_64).u32(0).u32(0);
        out.u64(entries).u64(entries).u64(length).u64(offset);
        out.u32(END_64_LOCATOR).u32(0).u64(offset + length).u32(1);
    }
    out.u32(END).u16(0).u16(0).u16(few).u16(few).u32(narrow(length)).u32(narrow(offset)).u16(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            method: Method::Deflated,
            executable: false,
            streamed: false,
            large: false,
            crc: 7,
            compressed: 3,
            size: 5,
            offset: 0,
        }
    }

    #[test]
    fn small_numbers_need_no_zip64() {
        let mut out = Vec::new();
        entry().put_local_header("a", &mut out);
        assert_eq!(out.len(), LOCAL_HEADER_LEN + 1);
        out.clear();
        entry().put_central_header("a", &mut out);
        assert_eq!(out.len(), 46 + 1);
        assert_eq!(end(1, 47, 100).len(), 22);
    }

    #[test]
    fn each_number_moves_into_zip64_by_itself() {
        let mut out = Vec::new();
        Entry { offset: 1 << 32, ..entry() }.put_central_header("a", &mut out);
        assert_eq!(out.len(), 46 + 1 + 12);
        assert_eq!(out[47..], [1, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        out.clear();
        Entry { size: 1 << 33, compressed: u64::from(u32::MAX), large: true, ..entry() }
            .put_central_header("a", &mut out);
        assert_eq!(out.len(), 46 + 1 + 20);
        assert_eq!(out[47..51], [1, 0, 16, 0]);
        assert_eq!(end(65_535, 1, 1).len(), 98);
        assert_eq!(end(1, 1, 1 << 32).len(), 98);
    }

    #[test]
    fn a_name_that_is_not_ascii_is_said_to_be_utf8() {
        assert_eq!(entry().flags("a"), 0);
        assert_eq!(entry().flags("é"), 1 << 11);
    }
}
