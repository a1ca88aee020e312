//! A run, written down: what each machine was told, in order, and what happened.
//!
//! One JSON value a line: a head with the plan, then steps and events as the log had them.
//! Written while the log is locked, unbuffered, so that a recording ends where the run did,
//! however it ended. Reading one back is `replay`'s; an older format is read as long as
//! `FORMAT` below says so.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::decide::message::{Step, StepSink};
use crate::model::{Event, Plan};

/// The format that is written. Formats 1 to this one can be read.
pub const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecordingHeader {
    /// The format.
    pub regrow_recording: u32,
    /// Of which version of regrow.
    pub version: String,
    /// What ran, without its environment.
    pub plan: Plan,
}

/// Each line after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingLine {
    /// A machine was told something.
    Step(Step),
    /// It was written down.
    Event(Event),
}

/// Writes a recording.
pub struct Recorder<W: Write + Send> {
    /// `None`: writing failed, which was told.
    out: Option<W>,
}

impl Recorder<File> {
    /// Into a new file, readable by its owner alone. An error if there is one already.
    pub fn create(path: &Path, plan: &Plan) -> io::Result<Recorder<File>> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        Recorder::new(file, plan)
    }
}

impl<W: Write + Send> Recorder<W> {
    /// Into any writer.
    pub fn new(mut out: W, plan: &Plan) -> io::Result<Recorder<W>> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let head = RecordingHeader { regrow_recording: FORMAT, version, plan: plan.clone() };
        out.write_all(&line(&head)?)?;
        Ok(Recorder { out: Some(out) })
    }

    /// The writer, unless writing failed.
    pub fn into_inner(self) -> Option<W> {
        self.out
    }

    fn write(&mut self, value: &impl Serialize) {
        let Some(out) = &mut self.out else {
            return;
        };
        if let Err(error) = line(value).and_then(|line| out.write_all(&line)) {
            tracing::error!(%error, "the recording ends here");
            self.out = None;
        }
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum LineRef<'a> {
    Step(&'a Step),
    Event(&'a Event),
}

impl<W: Write + Send> StepSink for Recorder<W> {
    fn step(&mut self, step: &Step) {
        self.write(&LineRef::Step(step));
    }

    fn event(&mut self, event: &Event) {
        self.write(&LineRef::Event(event));
    }
}

/// Why a recording can't be read.
#[derive(Debug)]
pub enum ReadError {
    /// The file can't be read.
    Io(io::Error),
    /// It is none, or of a later format; in words.
    NotOurs(String),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReadError::Io(error) => write!(f, "{error}"),
            ReadError::NotOurs(words) => f.write_str(words),
        }
    }
}

impl std::error::Error for ReadError {}

/// A recording that is read.
pub struct RecordingReader {
    /// Its head.
    pub head: RecordingHeader,
    lines: io::Lines<BufReader<File>>,
    number: usize,
}

impl RecordingReader {
    /// Opens one and reads its head.
    pub fn open(path: &Path) -> Result<RecordingReader, ReadError> {
        let mut lines = BufReader::new(File::open(path).map_err(ReadError::Io)?).lines();
        let first = lines.next().transpose().map_err(ReadError::Io)?.unwrap_or_default();
        let format = serde_json::from_str::<serde_json::Value>(&first)
            .ok()
            .and_then(|head| head.get("regrow_recording")?.as_u64())
            .ok_or_else(|| ReadError::NotOurs("this is no recording of regrow".to_owned()))?;
        if !(1..=u64::from(FORMAT)).contains(&format) {
            return Err(ReadError::NotOurs(format!(
                "this recording has format {format}; this regrow reads up to {FORMAT}"
            )));
        }
        let head = serde_json::from_str(&first)
            .map_err(|error| ReadError::NotOurs(format!("the head of the recording is damaged: {error}")))?;
        Ok(RecordingReader { head, lines, number: 1 })
    }

    /// The next line with its number; a line that was cut short when the run was killed is
    /// the end.
    pub fn next_line(&mut self) -> Result<Option<(usize, RecordingLine)>, ReadError> {
        let Some(text) = self.lines.next().transpose().map_err(ReadError::Io)? else {
            return Ok(None);
        };
        self.number += 1;
        match serde_json::from_str(&text) {
            Ok(line) => Ok(Some((self.number, line))),
            Err(error) if error.is_eof() => Ok(None),
            Err(error) => Err(ReadError::NotOurs(format!("line {}: {error}", self.number))),
        }
    }
}
