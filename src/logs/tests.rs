//! Tests of the log files: every byte comes back, whatever happens to the files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use super::*;

fn keep(folder: &tempfile::TempDir, max_size: u64, max_files: u32) -> LogConfig {
    LogConfig {
        otherwise: None,
        access: FileAccess::default(),
        place: LogPaths::Streams(folder.path().join("logs/web")),
        max_size,
        max_files,
        compress: false,
    }
}

fn in_one(folder: &tempfile::TempDir, max_size: u64, max_files: u32) -> LogConfig {
    let (file, index) = (folder.path().join("own/web.log"), folder.path().join("logs/web.idx"));
    LogConfig {
        otherwise: None,
        access: FileAccess::default(),
        place: LogPaths::One { file, index },
        max_size,
        max_files,
        compress: false,
    }
}

fn open(logs: &Logs, source: SourceId, keep: &LogConfig) -> io::Result<[OwnedFd; 2]> {
    logs.place(source, logs.make(source, keep)?)
}

/// Moves one piece of output. Returns whether the keeper would have been told of other files.
fn pour(
    logs: &Logs,
    stream: Stream,
    pipe: &OwnedFd,
    buffer: &mut [u8],
) -> (bool, (PipeRead, Option<LostOutput>)) {
    let mut told = false;
    loop {
        match logs.pour(SourceId(0), stream, pipe.as_fd(), buffer) {
            WriteResult::Moves(_) => told = true,
            WriteResult::Took(took, loss) => return (told, (took, loss)),
        }
        logs.tidy(SourceId(0));
    }
}

fn pipe() -> (OwnedFd, File) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    (read, write.into())
}

fn last(keep: &LogConfig, stream: Stream, most: u64) -> Vec<u8> {
    last_of(keep, stream, most, LogRange::All)
        .unwrap()
        .parts
        .into_iter()
        .flat_map(|part| part.bytes)
        .collect()
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Prints to a pipe and takes the output from it, as the reaper does.
struct Printer {
    logs: Logs,
    pipe: (OwnedFd, File),
    buffer: Vec<u8>,
}

impl Printer {
    fn new(keep: &LogConfig) -> Printer {
        let logs = Logs::default();
        open(&logs, SourceId(0), keep).unwrap();
        Printer { logs, pipe: pipe(), buffer: vec![0; 4096] }
    }

    /// Prints a text. Returns whether the keeper would have been told of other files.
    fn prints(&mut self, stream: Stream, text: &str) -> bool {
        self.pipe.1.write_all(text.as_bytes()).unwrap();
        let (told, taken) = self.takes(stream);
        assert_eq!(taken, (PipeRead::Bytes(text.len()), None));
        told
    }

    fn takes(&mut self, stream: Stream) -> (bool, (PipeRead, Option<LostOutput>)) {
        let Printer { logs, pipe: (pipe, _), buffer } = self;
        pour(logs, stream, pipe, buffer)
    }
}

#[test]
fn what_goes_in_comes_out_of_the_files_and_of_the_buffer() {
    let folder = tempfile::tempdir().unwrap();
    let keep = keep(&folder, 1000, 3);
    let (logs, source) = (Logs::default(), SourceId(0));
    open(&logs, source, &keep).unwrap();
    let (read, mut write) = pipe();
    let mut buffer = vec![0; 4096];
    let mut printed = Vec::new();
    for n in 0..300 {
        let line = format!("line {n}\n");
        write.write_all(line.as_bytes()).unwrap();
        printed.extend_from_slice(line.as_bytes());
        let (_, taken) = pour(&logs, Stream::Out, &read, &mut buffer);
        assert_eq!(taken, (PipeRead::Bytes(line.len()), None));
        assert_eq!(&buffer[..line.len()], line.as_bytes());
    }
    assert_eq!(pour(&logs, Stream::Out, &read, &mut buffer).1.0, PipeRead::Nothing);
    drop(write);
    assert_eq!(pour(&logs, Stream::Out, &read, &mut buffer).1.0, PipeRead::End);
    let parts = last_of(&keep, Stream::Out, u64::MAX, LogRange::All).unwrap().parts;
    let kept: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
    assert_eq!(kept, printed[printed.len() - kept.len()..], "the last of it, whole lines");
    assert!(kept.len() > 2000 && kept.starts_with(b"line "), "three files");
    assert!(parts.windows(2).all(|pair| pair[0].at <= pair[1].at));
    assert_eq!(last(&keep, Stream::Out, 9), b"line 299\n");
    assert!(!numbered(&keep.file(Stream::Out), 3).exists());
}

#[test]
fn another_goes_on_where_the_last_one_was() {
    let folder = tempfile::tempdir().unwrap();
    let keep = keep(&folder, 1 << 20, 2);
    let (read, mut write) = pipe();
    let mut buffer = vec![0; 4096];
    for text in ["one\n", "two\n"] {
        let logs = Logs::default();
        let [out, _] = open(&logs, SourceId(0), &keep).unwrap();
        write.write_all(text.as_bytes()).unwrap();
        assert_eq!(pour(&logs, Stream::Out, &read, &mut buffer).1.0, PipeRead::Bytes(4));
        // The keeper writes to the same file in between.
        write.write_all(b"away\n").unwrap();
        drop(logs);
        assert_eq!(splice_to_end(read.as_fd(), out.as_fd(), 100), Ok(5));
    }
    assert_eq!(fs::read(keep.file(Stream::Out)).unwrap(), b"one\naway\ntwo\naway\n");
}

#[test]
fn a_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let keep = keep(&folder, 1 << 20, 2);
    fs::create_dir(folder.path().join("logs")).unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, keep.file(Stream::Out)).unwrap();
    assert!(open(&Logs::default(), SourceId(0), &keep).is_err());
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn what_is_no_file_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let keep = in_one(&folder, 1 << 20, 2);
    fs::create_dir(folder.path().join("own")).unwrap();
    nix::unistd::mkfifo(&keep.file(Stream::Out), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = open(&Logs::default(), SourceId(0), &keep).unwrap_err();
    assert_eq!(error.to_string(), "it is not a regular file");
}

#[test]
fn both_streams_in_one_file_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let keep = in_one(&folder, 60, 100);
    let mut printer = Printer::new(&keep);
    let (mut all, mut each) = (String::new(), [String::new(), String::new()]);
    for n in 0..100 {
        let stream = if n % 3 == 0 { Stream::Err } else { Stream::Out };
        let line = format!("line {n}\n");
        printer.prints(stream, &line);
        all += &line;
        each[stream as usize] += &line;
    }
    for stream in [Stream::Out, Stream::Err] {
        assert_eq!(last(&keep, stream, u64::MAX), each[stream as usize].as_bytes());
    }
    // The files alone, without the index, hold the same text.
    let mut read = Vec::new();
    let file = keep.file(Stream::Out);
    for number in (1..100).rev() {
        read.extend(fs::read(numbered(&file, number)).unwrap_or_default());
    }
    read.extend(fs::read(&file).unwrap());
    assert_eq!(read, all.as_bytes());
    // The next daemon finds the unfinished line of each stream.
    printer.prints(Stream::Out, "beg");
    printer.prints(Stream::Err, "of the other\n");
    let next = Logs::default();
    next.open_later(SourceId(0), keep.clone());
    let keep = next.due(SourceId(0)).unwrap();
    let due = next.make_due(&keep).unwrap();
    assert_eq!(next.place_due(SourceId(0), due).unwrap().0, [b"beg".to_vec(), Vec::new()]);
    assert!(next.due(SourceId(0)).is_none(), "once");
}

#[test]
fn what_is_put_aside_is_compressed_and_read_again() {
    for one in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let keep = if one { in_one(&folder, 500, 1000) } else { keep(&folder, 500, 1000) };
        let keep = LogConfig { compress: true, ..keep };
        let mut printer = Printer::new(&keep);
        let mut printed = String::new();
        for n in 0..5_000 {
            let line = format!("line {n}\n");
            printer.prints(Stream::Out, &line);
            printed += &line;
            if n == 2_500 {
                let file = keep.file(Stream::Out);
                fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
            }
        }
        let file = keep.file(Stream::Out);
        eventually("all is compressed", || !(1..200).any(|number| numbered(&file, number).exists()));
        assert_eq!(String::from_utf8(last(&keep, Stream::Out, u64::MAX)).unwrap(), printed);
        let first = compressed(&numbered(&file, 1));
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(&first).unwrap()).read_to_string(&mut text).unwrap();
        assert!(text.starts_with("line ") && text.ends_with('\n'), "a whole file: {text:?}");
        for path in [&file, &first] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o640, "as its owner has it");
        }
        assert!(!with_suffix(&file, ".gz.part").exists());
        // No more files are kept than configured, compressed or not.
        let keep = LogConfig { max_files: 3, ..keep };
        assert!(printer.logs.change(SourceId(0), &keep).unwrap().is_none(), "the same files");
        let left = |number: u32| compressed(&numbered(&file, number)).exists();
        eventually("the others are dropped", || {
            printer.prints(Stream::Out, &format!("{}\n", "x".repeat(500)));
            !left(60)
        });
        eventually("all is compressed", || !(1..200).any(|number| numbered(&file, number).exists()));
        let there: Vec<u32> = (1..600).filter(|number| left(*number)).collect();
        assert_eq!(there, [1, 2]);
    }
}

#[test]
fn the_next_one_compresses_what_a_killed_one_left() {
    let folder = tempfile::tempdir().unwrap();
    let keep = keep(&folder, 100, 10);
    let mut printer = Printer::new(&keep);
    for n in 0..50 {
        printer.prints(Stream::Out, &format!("line {n:04}\n"));
    }
    let before = last(&keep, Stream::Out, u64::MAX);
    let file = keep.file(Stream::Out);
    // A killed process has left a partial file, and a compressed one beside its plain one.
    fs::write(with_suffix(&file, ".gz.part"), "half").unwrap();
    fs::write(compressed(&numbered(&file, 2)), "torn").unwrap();
    let mut printer = Printer::new(&LogConfig { compress: true, ..keep.clone() });
    printer.prints(Stream::Out, "next\n");
    eventually("all is compressed", || !(1..20).any(|number| numbered(&file, number).exists()));
    assert_eq!(last(&keep, Stream::Out, u64::MAX), [&before[..], b"next\n"].concat());
}

#[test]
fn it_goes_on_whatever_others_do_to_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let keep = in_one(&folder, 1 << 20, 3);
    let file = keep.file(Stream::Out);
    let mut printer = Printer::new(&keep);
    printer.prints(Stream::Out, "one\n");
    // As logrotate does with copytruncate.
    File::options().write(true).open(&file).unwrap().set_len(0).unwrap();
    assert!(!printer.prints(Stream::Out, "two\n"));
    assert_eq!(fs::read(&file).unwrap(), b"two\n");
    // Another program appends to the file.
    File::options().append(true).open(&file).unwrap().write_all(b"-- mark\n").unwrap();
    printer.prints(Stream::Err, "three\n");
    assert_eq!(fs::read(&file).unwrap(), b"two\n-- mark\nthree\n");
    // As logrotate does by renaming, and when the folder is removed: noticed within a second.
    for away in [false, true] {
        if away {
            fs::remove_dir_all(file.parent().unwrap()).unwrap();
        } else {
            fs::rename(&file, with_suffix(&file, "-20200101")).unwrap();
        }
        eventually("a keeper is told", || printer.prints(Stream::Out, "next\n"));
        printer.prints(Stream::Out, "last\n");
        assert_eq!(fs::read(&file).unwrap(), b"next\nlast\n");
    }
    // While the file can't be made again, lost bytes are counted.
    let own = file.parent().unwrap().to_owned();
    fs::remove_dir_all(&own).unwrap();
    fs::write(&own, "in the way").unwrap();
    let mut lost = None;
    eventually("the loss is told", || {
        printer.pipe.1.write_all(b"lost\n").unwrap();
        lost = printer.takes(Stream::Out).1.1;
        lost.is_some()
    });
    assert!(matches!(&lost, Some(LostOutput::Begins(reason)) if reason.contains("exists")), "{lost:?}");
    fs::remove_file(&own).unwrap();
    let mut count = 1;
    eventually("it is kept again", || {
        printer.pipe.1.write_all(b"lost\n").unwrap();
        lost = printer.takes(Stream::Out).1.1;
        count += usize::from(lost.is_none());
        lost.is_some()
    });
    assert_eq!(lost, Some(LostOutput::Over(count as u64 * 5)));
    assert_eq!(fs::read(&file).unwrap(), b"lost\n");
}

#[test]
fn another_place_takes_what_comes_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (keep(&folder, 1 << 20, 3), in_one(&folder, 1 << 20, 3));
    let mut printer = Printer::new(&before);
    printer.prints(Stream::Out, "one\n");
    let fresh = printer.logs.change(SourceId(0), &after).unwrap().unwrap();
    printer.logs.place(SourceId(0), fresh).unwrap();
    assert!(printer.logs.news(SourceId(0)).is_none(), "who has changed it tells a keeper");
    printer.prints(Stream::Err, "two\n");
    assert_eq!(last(&before, Stream::Out, 99), b"one\n");
    assert_eq!(fs::read(after.file(Stream::Out)).unwrap(), b"two\n");
    // When the new place can't be used, the output stays in the old one.
    let nowhere = LogConfig {
        otherwise: None,
        access: FileAccess::default(),
        place: LogPaths::Streams("/proc/nowhere/web".into()),
        ..after.clone()
    };
    assert!(printer.logs.change(SourceId(0), &nowhere).is_err());
    printer.prints(Stream::Out, "three\n");
    assert_eq!(fs::read(after.file(Stream::Out)).unwrap(), b"two\nthree\n");
}

#[test]
fn what_is_missing_or_broken_hides_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let keep = LogConfig { compress: true, ..keep(&folder, 100, 50) };
    let mut printer = Printer::new(&keep);
    for n in 0..100 {
        printer.prints(Stream::Out, &format!("line {n:04}\n"));
    }
    let file = keep.file(Stream::Out);
    eventually("all is compressed", || !(1..50).any(|number| numbered(&file, number).exists()));
    let all = String::from_utf8(last(&keep, Stream::Out, u64::MAX)).unwrap();
    let text = |number: u32| {
        let (mut text, file) = (String::new(), File::open(compressed(&numbered(&file, number))).unwrap());
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        text
    };
    let want = all.replace(&text(2), "").replace(&text(4), "");
    fs::remove_file(compressed(&numbered(&file, 2))).unwrap();
    fs::write(compressed(&numbered(&file, 4)), "garbage").unwrap();
    assert_eq!(String::from_utf8(last(&keep, Stream::Out, u64::MAX)).unwrap(), want);
    let before = (1..50).filter(|number| compressed(&numbered(&file, *number)).exists()).count();
    // The next file that is put aside fills the gap.
    while !compressed(&numbered(&file, 2)).exists() {
        printer.prints(Stream::Out, "more\n");
    }
    let count = || (1..50).filter(|number| compressed(&numbered(&file, *number)).exists()).count();
    eventually("one more", || count() == before + 1);
    // `LogRange::Plain` decompresses nothing.
    let tail = last_of(&keep, Stream::Out, u64::MAX, LogRange::Plain).unwrap();
    assert!(!tail.complete && tail.parts.iter().all(|part| part.bytes == b"more\n"));
}

#[test]
fn last_words_stay_until_there_are_others() {
    let folder = tempfile::tempdir().unwrap();
    let keep = keep(&folder, 5, 1);
    let mut printer = Printer::new(&keep);
    printer.prints(Stream::Out, "last words\n");
    assert_eq!(printer.takes(Stream::Out).1, (PipeRead::Nothing, None));
    assert_eq!(fs::read(keep.file(Stream::Out)).unwrap(), b"last words\n");
    printer.prints(Stream::Out, "others\n");
    assert_eq!(fs::read(keep.file(Stream::Out)).unwrap(), b"others\n");
}

#[test]
fn a_file_that_can_not_be_put_aside_goes_on_growing() {
    let folder = tempfile::tempdir().unwrap();
    let keep = keep(&folder, 20, 2);
    let mut printer = Printer::new(&keep);
    let file = keep.file(Stream::Out);
    fs::create_dir_all(numbered(&file, 1).join("in the way")).unwrap();
    let mut printed = String::new();
    for n in 0..100 {
        let line = format!("line {n}\n");
        printer.prints(Stream::Out, &line);
        printed += &line;
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), printed);
    assert!(!with_suffix(&file, ".next").exists());
}

/// A program that rotates by renaming cuts no line in two, if the line has an end.
#[test]
fn a_file_that_is_renamed_ends_with_a_line() {
    for make in [keep, in_one] {
        let folder = tempfile::tempdir().unwrap();
        let keep = make(&folder, 1 << 20, 3);
        let mut printer = Printer::new(&keep);
        printer.prints(Stream::Out, "one\ntw");
        let aside = folder.path().join("aside");
        fs::rename(keep.file(Stream::Out), &aside).unwrap();
        // The path is checked once a second.
        eventually("the rest of the line and no more goes along", || {
            printer.pipe.1.write_all(b"o").unwrap();
            printer.takes(Stream::Out);
            printer.logs.of(SourceId(0)).unwrap().lock().files.of(Stream::Out).is_leaving()
        });
        printer.pipe.1.write_all(b"!\nthree\nfo").unwrap();
        while printer.takes(Stream::Out).1.0 != PipeRead::Nothing {}
        printer.prints(Stream::Out, "ur\n");
        let text = fs::read_to_string(&aside).unwrap();
        assert!(
            text.starts_with("one\ntwo") && text.ends_with("o!\n") && text.lines().count() == 2,
            "{text:?}"
        );
        assert_eq!(fs::read_to_string(keep.file(Stream::Out)).unwrap(), "three\nfour\n");
        // A removed file does not get the rest of the line.
        printer.prints(Stream::Out, "fi");
        fs::remove_file(keep.file(Stream::Out)).unwrap();
        eventually("it goes on in a new one", || {
            printer.prints(Stream::Out, "v");
            fs::read_to_string(keep.file(Stream::Out)).is_ok_and(|text| text == "v")
        });
    }
}

#[test]
fn a_daemon_goes_on_where_the_one_before_it_went_instead() {
    let folder = tempfile::tempdir().unwrap();
    let keep = LogConfig { otherwise: Some(folder.path().join("logs/web")), ..in_one(&folder, 1 << 20, 3) };
    fs::create_dir_all(keep.file(Stream::Out)).unwrap();
    let logs = Logs::default();
    assert!(open(&logs, SourceId(0), &keep).unwrap_err().to_string().contains("Is a directory"));
    let due = logs.make_due(&keep).unwrap();
    let (_, used) = logs.place_due(SourceId(0), due).unwrap();
    assert_eq!(used.file(Stream::Err), folder.path().join("logs/web.stderr.log"));
    // The configured place is used again as soon as it can be.
    fs::remove_dir(keep.file(Stream::Out)).unwrap();
    open(&logs, SourceId(0), &keep).unwrap();
    assert_eq!(logs.kept(SourceId(0)), Some(keep.clone()));
    assert!(keep.file(Stream::Out).is_file());
}

#[test]
fn work_on_the_files_of_one_source_holds_up_no_other_source() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (in_one(&folder, 1 << 20, 3), keep(&folder, 1 << 20, 3));
    let logs = Logs::default();
    open(&logs, SourceId(0), &one).unwrap();
    let slot = logs.of(SourceId(0)).unwrap();
    let held = slot.lock();
    // Calls that must not block do not wait for the lock.
    assert_eq!(logs.kept(SourceId(0)), Some(one.clone()));
    assert!(logs.device(SourceId(0)).is_some() && logs.files(SourceId(0)).is_none());
    logs.tidy(SourceId(0));
    logs.rest(SourceId(0));
    assert!(logs.news(SourceId(0)).is_none() && logs.of(SourceId(0)).is_some());
    open(&logs, SourceId(1), &other).unwrap();
    let taken = open(&logs, SourceId(2), &one).unwrap_err();
    assert_eq!(taken.to_string(), TAKEN);
    // The source can get other files meanwhile.
    let instead =
        logs.change(SourceId(0), &LogConfig { place: LogPaths::Streams(folder.path().join("b")), ..one });
    logs.place(SourceId(0), instead.unwrap().unwrap()).unwrap();
    assert!(!Arc::ptr_eq(&logs.of(SourceId(0)).unwrap(), &slot) && logs.some_leave());
    drop(held);
    logs.close_those_that_leave();
    assert_eq!(Arc::strong_count(&slot), 1, "nobody else has them open");
}

#[test]
fn a_folder_is_hung_as_long_as_somebody_waits_there() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (in_one(&folder, 1, 1), keep(&folder, 1, 1));
    let logs = Logs::default();
    logs.hangs(&one);
    // `hangs_no_more` may be reported before its `hangs`.
    logs.hangs_no_more(&one);
    logs.hangs_no_more(&one);
    assert!(!logs.is_hung(&one));
    logs.hangs(&one);
    logs.hangs(&one);
    assert!(logs.is_hung(&one) && !logs.is_hung(&other));
    logs.hangs_no_more(&one);
    assert!(!logs.is_hung(&one));
}
