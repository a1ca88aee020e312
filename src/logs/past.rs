//! What was printed: read back from log files, with the time at which it came.
//!
//! An index is a list of entries of two eight-byte numbers, little-endian: the place in the file from
//! which on something came, and when, in microseconds since 1970. The highest bit of the second says
//! that it was standard error. An index may lack its last entries, and those of what a keeper wrote:
//! then what came counts as what stands before it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use flate2::read::GzDecoder;

use super::{LogConfig, LogPaths, Stream, compressed, numbered};

/// Of a line that another has begun to read so much is looked at.
pub(crate) const LONGEST_LINE: u64 = 64 * 1024;

/// Bytes of an entry of the index.
pub(crate) const ENTRY: u64 = 16;

/// Of standard error.
const ERR: u64 = 1 << 63;

/// An entry: what begins here came then, on this stream.
pub(crate) fn entry(at: u64, when: SystemTime, stream: Stream) -> [u8; 16] {
    let when = when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(when.as_micros()).unwrap_or(u64::MAX) & !ERR;
    let micros = if stream == Stream::Err { micros | ERR } else { micros };
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&at.to_le_bytes());
    entry[8..].copy_from_slice(&micros.to_le_bytes());
    entry
}

/// A part of what was printed, with the time at which it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// When it was read.
    pub at: SystemTime,
    /// It.
    pub bytes: Vec<u8>,
}

/// The last of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tail {
    /// Oldest first.
    pub parts: Vec<Part>,
    /// There is nothing before it.
    pub complete: bool,
}

/// Which of the files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRange {
    /// Those that are not compressed: for who has no time.
    Plain,
    /// All.
    All,
}

/// The last of a stream, over the files that are kept: what is found in so many of their last bytes,
/// which may be the other stream's as well.
pub fn last_of(keep: &LogConfig, stream: Stream, most: u64, reach: LogRange) -> io::Result<Tail> {
    let file = keep.file(stream);
    let which = || fs::symlink_metadata(&file).ok().map(|at| (at.dev(), at.ino()));
    let mut tries = 0;
    loop {
        // Where one is put aside meanwhile, what was read may lie under two numbers, or none.
        let before = which();
        let read = read_all(keep, stream, most, reach);
        tries += 1;
        if before == which() || tries == TRIES {
            return read;
        }
    }
}

const TRIES: u32 = 8;

/// So many files in a row may be missing before there are no older ones.
pub(crate) const GAP: u32 = 3;

fn read_all(keep: &LogConfig, stream: Stream, most: u64, reach: LogRange) -> io::Result<Tail> {
    let (file, index) = (keep.file(stream), keep.index(stream));
    let only = match &keep.place {
        LogPaths::Streams(_) => None,
        LogPaths::One { .. } => Some(stream),
    };
    let mut tail = Tail { parts: Vec::new(), complete: false };
    let mut left = most;
    let mut missed = 0;
    for number in 0..keep.max_files.max(1) {
        let (one, its_index) = match number {
            0 => (file.clone(), index.clone()),
            number => (numbered(&file, number), numbered(&index, number)),
        };
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let end = match plain_end(&one, left) {
            Err(error) if missing(&error) && number > 0 && reach == LogRange::All => {
                compressed_end(&compressed(&one), left)
            }
            read => read,
        };
        match end {
            Ok(end) => {
                missed = 0;
                left -= (end.bytes.len() as u64).min(left);
                let more = end.from == 0;
                let mut older = parts(end, &times(&its_index).unwrap_or_default(), only);
                older.append(&mut tail.parts);
                tail.parts = older;
                if !more {
                    return Ok(tail);
                }
            }
            // Somebody has taken it away, or was killed between two renames: older ones may be there.
            Err(error) if missing(&error) => {
                if reach == LogRange::Plain && compressed(&one).exists() {
                    return Ok(tail);
                }
                missed += 1;
                if missed > GAP {
                    break;
                }
                continue;
            }
            // The others are worth something without it.
            Err(error) => {
                tracing::warn!(%error, path = %one.display(), "what was printed can't be read");
            }
        }
    }
    tail.complete = true;
    Ok(tail)
}

/// The begin of a line of a stream whose end has not come yet.
pub(crate) fn unfinished(keep: &LogConfig, stream: Stream) -> Vec<u8> {
    let tail = last_of(keep, stream, LONGEST_LINE, LogRange::Plain).unwrap_or_default();
    let mut bytes: Vec<u8> = tail.parts.into_iter().flat_map(|part| part.bytes).collect();
    let begin = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.split_off(begin)
}

/// The end of a file.
struct End {
    /// Where it begins in it.
    from: u64,
    bytes: Vec<u8>,
    /// When the file was last written.
    written: SystemTime,
}

/// A file that is read: never through a link, and none that would keep us waiting.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn plain_end(path: &Path, most: u64) -> io::Result<End> {
    let file = open(path)?;
    let about = file.metadata()?;
    let from = about.len().saturating_sub(most);
    let mut bytes = vec![0; usize::try_from(about.len() - from).unwrap_or_default()];
    file.read_exact_at(&mut bytes, from)?;
    Ok(End { from, bytes, written: about.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
}

/// No more of it is held than is asked for.
fn compressed_end(path: &Path, most: u64) -> io::Result<End> {
    let file = open(path)?;
    let written = file.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut decoder = GzDecoder::new(io::BufReader::new(file));
    let (mut size, mut last) = (0, VecDeque::new());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = decoder.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        size += length as u64;
        last.extend(&buffer[..length]);
        last.drain(..last.len().saturating_sub(most));
    }
    let bytes: Vec<u8> = last.into();
    Ok(End { from: size - bytes.len() as u64, bytes, written })
}

/// Where something begins, when it came, and on which stream.
type Times = Vec<(u64, u64, Stream)>;

fn times(index: &Path) -> io::Result<Times> {
    let mut bytes = Vec::new();
    open(index)?.read_to_end(&mut bytes)?;
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    let read = |entry: &[u8]| {
        let (at, micros) = (number(&entry[..8]), number(&entry[8..]));
        (at, micros & !ERR, if micros & ERR == 0 { Stream::Out } else { Stream::Err })
    };
    Ok(bytes.chunks_exact(16).map(read).collect())
}

/// The end of a file in its parts, or those of one stream alone.
fn parts(end: End, times: &Times, only: Option<Stream>) -> Vec<Part> {
    let End { from, bytes, written } = end;
    let size = from + bytes.len() as u64;
    let mut parts: Vec<Part> = Vec::new();
    let mut at = from;
    // The entry that what we begin with belongs to, and all behind it.
    let first = times.partition_point(|(place, ..)| *place <= from).saturating_sub(1);
    let mut times = times[first.min(times.len())..].iter().copied().peekable();
    let (mut time, mut stream) = (None, Stream::Out);
    while at < size {
        while let Some((_, micros, of)) = times.next_if(|(place, ..)| *place <= at) {
            (time, stream) = (Some(micros), of);
        }
        let end = times.peek().map_or(size, |(place, ..)| (*place).min(size));
        let end = if end <= at { size } else { end };
        let slice = |from_at: u64| usize::try_from(from_at - from).unwrap_or_default();
        let when = time.map(|micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
        if only.is_none_or(|only| only == stream) {
            parts.push(Part { at: when.unwrap_or(written), bytes: bytes[slice(at)..slice(end)].to_vec() });
        }
        at = end;
    }
    parts
}
