//! The recording of a run: the inputs of every machine in order, and the events that followed.
//!
//! The file holds one JSON value per line: a head with the plan, then the steps and events in the
//! order of the log. They are written unbuffered while the log is locked, so that a recording ends
//! where the run did, however it ended. Deliberately absent: the replay of a recording, which is in
//! `replay`. Older formats can be read back as far as [`FORMAT`] says.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::decide::message::{Step, StepSink};
use crate::model::{Event, Plan};

/// The format that is written. Formats from 1 up to this one can be read.
pub const FORMAT: u32 = 1;

/// The first line of a recording.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecordingHeader {
    /// The format of the recording.
    pub regrow_recording: u32,
    /// The version of regrow that wrote the recording.
    pub version: String,
    /// The plan that ran, without its environment.
    pub plan: Plan,
}

/// A line after the first one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingLine {
    /// An input of a machine.
    Step(Step),
    /// An event that was appended to the log.
    Event(Event),
}

/// Writes a recording.
pub struct Recorder<W: Write + Send> {
    /// `None` after a failed write, which was logged.
    out: Option<W>,
}

impl Recorder<File> {
    /// Records into a new file, readable by its owner alone. Fails when the file exists.
    pub fn create(path: &Path, plan: &Plan) -> io::Result<Recorder<File>> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        Recorder::new(file, plan)
    }
}

impl<W: Write + Send> Recorder<W> {
    /// Records into any writer.
    pub fn new(mut out: W, plan: &Plan) -> io::Result<Recorder<W>> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let head = RecordingHeader { regrow_recording: FORMAT, version, plan: plan.clone() };
        out.write_all(&line(&head)?)?;
        Ok(Recorder { out: Some(out) })
    }

    /// The writer. `None` when a write has failed.
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

/// The reason why a recording can't be read.
#[derive(Debug)]
pub enum ReadError {
    /// The file can't be read.
    Io(io::Error),
    /// The file is not a recording, or has an unknown format. The text says which.
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

/// Reads a recording line by line.
pub struct RecordingReader {
    /// The first line of the recording.
    pub head: RecordingHeader,
    lines: io::Lines<BufReader<File>>,
    number: usize,
}

impl RecordingReader {
    /// Opens a recording and reads its head.
    pub fn open(path: &Path) -> Result<RecordingReader, ReadError> {
        let mut lines = BufReader::new(File::open(path).map_err(ReadError::Io)?).lines();
        let first = lines.next().transpose().map_err(ReadError::Io)?.unwrap_or_default();
        let format = serde_json::from_str::<serde_json::Value>(&first)
            .ok()
            .and_then(|head| head.get("regrow_recording")?.as_u64())
            .ok_or_else(|| ReadError::NotOurs("this is not a recording of regrow".to_owned()))?;
        if !(1..=u64::from(FORMAT)).contains(&format) {
            return Err(ReadError::NotOurs(format!(
                "this recording has format {format}; this regrow reads up to {FORMAT}"
            )));
        }
        let head = serde_json::from_str(&first)
            .map_err(|error| ReadError::NotOurs(format!("the head of the recording is damaged: {error}")))?;
        Ok(RecordingReader { head, lines, number: 1 })
    }

    /// The next line and its number. A last line that was cut short, because the run was killed, counts
    /// as the end.
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
