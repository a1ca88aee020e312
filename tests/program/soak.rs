//! Everything at once for a while: services that number what they print, clients that give
//! commands, and deaths of the keeper, the daemon, both, and many services at a time.
//!
//! `REGROW_TEST_SOAK=300 cargo test --test program soak` goes on for that many seconds;
//! `REGROW_TEST_SEED` repeats the same choices. The assertions do not depend on them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::harness::{Chance, end, eventually, eventually_or, named};
use crate::machine::Machine;

/// A service prints 0, 1, 2, ... in each of its lives: no line of any life is missing or printed
/// twice. Returns the number of lives and of lines.
fn lives_and_lines(text: &str) -> (usize, usize) {
    let (mut lives, mut lines, mut next) = (0, 0, 0u64);
    // The last line may be incomplete.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let number: u64 = line.parse().unwrap_or_else(|_| panic!("{line:?} after {lines} lines"));
        if number == 0 {
            (lives, next) = (lives + 1, 0);
        }
        assert_eq!(number, next, "after {lines} lines, in life {lives}");
        (lines, next) = (lines + 1, next + 1);
    }
    (lives, lines)
}

#[test]
fn a_while_of_deaths_and_commands_costs_no_process_and_no_line() {
    const SERVICES: usize = 24;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = Duration::from_secs(number("REGROW_TEST_SOAK").unwrap_or(8));
    let seed = number("REGROW_TEST_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap()
    });
    eprintln!("REGROW_TEST_SEED={seed} REGROW_TEST_SOAK={}", time.as_secs());
    let mut chance = Chance(seed);
    let mut manifest = String::new();
    for n in 0..SERVICES {
        // Each service is found by a word of its own.
        manifest.push_str(&format!(
            "[service.count-{n}]\nshell = \"i=0; while :; do echo $i; i=$((i+1)); sleep 0.0$((i % 7 + 1)); done; : soak-{n}-\"\n\
             restart = {{ policy = \"always\", backoff = {{ initial = \"10ms\", max = \"50ms\" }} }}\n"
        ));
    }
    let mut machine = Machine::started(&[("soak.toml", &manifest)]);
    let here = machine.project.dir().display().to_string();
    let up = |machine: &Machine| {
        eventually("all of them run", || {
            let pids = machine.all_pids();
            pids.len() == SERVICES && pids.values().all(Option::is_some)
        });
    };
    up(&machine);
    let (mut deaths, mut bursts, mut commands) = (BTreeMap::<&str, usize>::new(), 0, 0);
    let until = Instant::now() + time;
    while Instant::now() < until {
        match chance.of(10) {
            0 | 1 => {
                *deaths.entry("daemon").or_default() += 1;
                machine.kill_daemon();
            }
            2 | 3 => {
                *deaths.entry("keeper").or_default() += 1;
                machine.kill_keeper();
            }
            4 => {
                *deaths.entry("both").or_default() += 1;
                machine.kill_both();
                machine.start();
            }
            5 | 6 => {
                bursts += 1;
                let pids = machine.all_pids();
                let many = chance.of(SERVICES) + 1;
                for pid in pids.values().flatten().take(many) {
                    end(u32::try_from(*pid).unwrap());
                }
            }
            _ => {
                commands += 1;
                let name = format!("count-{}", chance.of(SERVICES));
                let verb = ["restart", "stop", "pause"][chance.of(3)];
                // The service may crash meanwhile; the command then reports that.
                let _ = machine.regrow(&[verb, &name]);
                let undone = match verb {
                    "stop" => machine.regrow(&["start", &name]),
                    "pause" => machine.regrow(&["resume", &name]),
                    _ => machine.regrow(&["status", &name]),
                };
                assert!(undone.code <= 1, "{verb} {name}: {} {}", undone.code, undone.stderr);
            }
        }
    }
    up(&machine);
    eprintln!("deaths {deaths:?}, {bursts} bursts, {commands} commands");
    // Each service has exactly one process, which is the one of the status. The last of them may have been
    // killed a moment ago, which the status need not show yet.
    for n in 0..SERVICES {
        let (name, word) = (format!("count-{n}"), format!("soak-{n}-"));
        let copies = || {
            let mut all = named(&word);
            all.retain(|pid| {
                std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at.starts_with(&here))
            });
            all.into_iter().map(u64::from).collect::<Vec<u64>>()
        };
        let shown = || machine.all_pids()[&name];
        let words = || format!("one copy of {n}: {:?}, not {:?} alone", copies(), shown());
        eventually_or(words, || shown().is_some_and(|one| copies() == [one]));
    }
    let down = machine.regrow(&["down"]);
    assert_eq!(down.code, 0, "{}{}", down.stdout, down.stderr);
    machine.run = None;
    let (mut lives, mut lines) = (0, 0);
    for n in 0..SERVICES {
        let text = std::fs::read_to_string(machine.log(&format!("soak/count-{n}.stdout.log"))).unwrap();
        let (of_lives, of_lines) = lives_and_lines(&text);
        (lives, lines) = (lives + of_lives, lines + of_lines);
    }
    eprintln!("{lives} lives, {lines} lines, none missing and none twice");
}
