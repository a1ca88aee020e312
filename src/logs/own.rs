//! This process's own log file. It is rotated and opened again like the files of services.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::{fs, io};

use super::compress::Compressor;
use super::file::{Turns, move_up};
use crate::sys::files;

/// The file that standard output and standard error go to.
#[derive(Debug)]
pub struct OwnLog {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    compress: bool,
    turns: Turns,
    compressor: Compressor,
}

impl OwnLog {
    /// The log at this path. The limits mean the same as for services.
    pub fn new(path: PathBuf, max_size: u64, max_files: u32, compress: bool) -> OwnLog {
        OwnLog {
            path,
            max_size,
            max_files,
            compress,
            turns: Turns::default(),
            compressor: Compressor::default(),
        }
    }

    /// Renames the file under a number. This process still prints to the renamed file.
    pub fn put_aside(&self) -> io::Result<()> {
        move_up(&self.path, self.max_files.max(1) - 1)
    }

    /// Puts a full file aside, and continues in a new file when the path is empty or holds another
    /// file. Output that is printed in between is in one of the two.
    pub fn look(&self) -> io::Result<()> {
        let own = nix::sys::stat::fstat(io::stdout().as_fd())?;
        let there = fs::symlink_metadata(&self.path);
        let in_place = there.as_ref().is_ok_and(|at| (at.dev(), at.ino()) == (own.st_dev, own.st_ino));
        let full = in_place && u64::try_from(own.st_size).is_ok_and(|size| size >= self.max_size);
        if in_place && !full {
            return Ok(());
        }
        if full {
            let _turn = self.turns.take_if_free(&self.path);
            self.put_aside()?;
        }
        let file = files::own_file(&self.path)?;
        nix::unistd::dup2_stdout(&file)?;
        nix::unistd::dup2_stderr(&file)?;
        if full && self.compress {
            self.compressor.compress(&self.path, &self.turns);
        }
        Ok(())
    }
}
