//! Keeper, daemon and standby, one step at a time in every order, with a death between any two
//! steps. It shows that the rules of `decide::succession` are enough: the processes that are left
//! make the pair again, and there are never two supervisors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use regrow::decide::succession::{
    AfterDaemon, AfterKeeper, DaemonEnd, DaemonIntent, after_daemon, after_keeper, makes_a_standby,
};
use regrow::model::Exit;

type Id = u8;

/// How far a daemon has come with its keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Coming,
    SaidHello,
    Welcomed,
    /// The daemon has released the standby that it was made with.
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Process {
    /// The standby waits until nothing holds it any more.
    Standby,
    Keeper {
        daemon: Option<Id>,
        greeted: bool,
        standby: Option<Id>,
    },
    Daemon {
        keeper: Id,
        stage: Stage,
        standby: Option<Id>,
    },
}

/// The living processes, and the number of the next one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Simulation {
    lives: BTreeMap<Id, Process>,
    next: Id,
}

/// Whether a daemon without a keeper makes a standby. The arguments: whether it was made with a
/// standby, and whether that one still waits.
type Rule = fn(bool, bool) -> bool;

const SHIPPED: Rule = |_, waits| makes_a_standby(waits, DaemonIntent::Again);

impl Simulation {
    /// The first state: a keeper that has just made its first daemon.
    fn begun() -> Simulation {
        let keeper = Process::Keeper { daemon: Some(1), greeted: false, standby: None };
        let daemon = Process::Daemon { keeper: 0, stage: Stage::Coming, standby: None };
        Simulation { lives: BTreeMap::from([(0, keeper), (1, daemon)]), next: 2 }
    }

    fn lives(&self, id: Id) -> bool {
        self.lives.contains_key(&id)
    }

    fn is_held(&self, id: Id) -> bool {
        self.lives.values().any(|process| match process {
            Process::Keeper { standby, .. } | Process::Daemon { standby, .. } => *standby == Some(id),
            Process::Standby => false,
        })
    }

    fn make(&mut self, process: Process) -> Id {
        let id = self.next;
        self.next += 1;
        self.lives.insert(id, process);
        id
    }

    /// The state after the next step of a process, if the process has a step to make.
    fn step(&self, id: Id, rule: Rule) -> Option<Simulation> {
        let mut then = self.clone();
        let own = match self.lives[&id] {
            Process::Standby if self.is_held(id) => return None,
            Process::Standby => Process::Keeper { daemon: None, greeted: false, standby: None },
            Process::Keeper { daemon: Some(daemon), greeted, standby } if self.lives(daemon) => {
                match self.lives[&daemon] {
                    Process::Daemon { stage: Stage::SaidHello, .. } if let Some(dismissed) = standby => {
                        then.lives.remove(&dismissed);
                        Process::Keeper { daemon: Some(daemon), greeted, standby: None }
                    }
                    Process::Daemon { keeper, stage: Stage::SaidHello, standby: held } => {
                        let welcomed = Process::Daemon { keeper, stage: Stage::Welcomed, standby: held };
                        then.lives.insert(daemon, welcomed);
                        Process::Keeper { daemon: Some(daemon), greeted: true, standby }
                    }
                    _ => return None,
                }
            }
            Process::Keeper { daemon, greeted, standby } => {
                let follows = daemon.is_none_or(|_| {
                    let end = DaemonEnd {
                        exit: Some(Exit::Signal { signal: 9, core_dumped: false }),
                        lived: Duration::from_secs(1),
                        greeted,
                        first: !greeted,
                        on_trial: false,
                        directive: DaemonIntent::Again,
                        failures: 0,
                    };
                    matches!(after_daemon(&end), AfterDaemon::Start { .. })
                });
                assert!(follows, "a keeper makes another daemon: {self:?}");
                let made = then.make(Process::Daemon { keeper: id, stage: Stage::Coming, standby });
                Process::Keeper { daemon: Some(made), greeted, standby }
            }
            Process::Daemon { keeper, stage, standby } if self.lives(keeper) => match stage {
                Stage::Coming => Process::Daemon { keeper, stage: Stage::SaidHello, standby },
                Stage::Welcomed => Process::Daemon { keeper, stage: Stage::Up, standby: None },
                Stage::SaidHello | Stage::Up => return None,
            },
            Process::Daemon { keeper, stage, standby } => {
                let waits = standby.is_some_and(|standby| self.lives(standby));
                if rule(standby.is_some(), waits) {
                    let standby = Some(then.make(Process::Standby));
                    Process::Daemon { keeper, stage, standby }
                } else {
                    let carry = after_keeper(false, DaemonIntent::Again);
                    assert_eq!(carry, AfterKeeper::Carry { other_program: false });
                    Process::Keeper { daemon: None, greeted: false, standby }
                }
            }
        };
        then.lives.insert(id, own);
        Some(then)
    }

    fn steps(&self, rule: Rule) -> Vec<Simulation> {
        self.lives.keys().filter_map(|id| self.step(*id, rule)).collect()
    }

    fn without(&self, id: Id) -> Simulation {
        let mut then = self.clone();
        then.lives.remove(&id);
        then
    }

    /// The number of processes that supervise or are about to.
    fn claims(&self) -> usize {
        let claims = |process: &&Process| match process {
            Process::Keeper { .. } => true,
            Process::Daemon { keeper, .. } => !self.lives(*keeper),
            Process::Standby => false,
        };
        self.lives.values().filter(claims).count()
    }

    /// What is wrong in this state.
    fn fault(&self, rule: Rule) -> Option<&'static str> {
        if self.claims() > 1 {
            return Some("two supervise");
        }
        let steps = self.steps(rule);
        let mut processes = self.lives.values();
        match (processes.next(), processes.next()) {
            (None, _) => {}
            // The standby has not executed anything yet that could make another process.
            (Some(Process::Standby), None) => {}
            (Some(_), None) if steps.iter().any(|then| then.lives.len() < 2) => {
                return Some("who is alone does something else before it makes another");
            }
            _ => {}
        }
        let rests = matches!(
            self.lives.values().collect::<Vec<_>>()[..],
            [Process::Keeper { greeted: true, .. }, Process::Daemon { stage: Stage::Up, .. }]
                | [Process::Daemon { stage: Stage::Up, .. }, Process::Keeper { greeted: true, .. }]
        );
        (steps.is_empty() && !self.lives.is_empty() && !rests).then_some("nothing goes on, and it is no pair")
    }
}

/// Explores every state that can be reached with at most this many deaths, and returns the first
/// faulty one.
fn explore(deaths: u8, rule: Rule) -> Result<usize, (&'static str, Simulation)> {
    let mut seen = BTreeSet::from([(Simulation::begun(), 0)]);
    let mut queue: VecDeque<(Simulation, u8)> = seen.iter().cloned().collect();
    while let Some((world, died)) = queue.pop_front() {
        if let Some(fault) = world.fault(rule) {
            return Err((fault, world));
        }
        let mut next: Vec<(Simulation, u8)> =
            world.steps(rule).into_iter().map(|then| (then, died)).collect();
        if died < deaths {
            next.extend(world.lives.keys().map(|id| (world.without(*id), died + 1)));
        }
        queue.extend(next.into_iter().filter(|state| seen.insert(state.clone())));
    }
    Ok(seen.len())
}

/// In whatever order the three processes take their steps and die, there are never two supervisors,
/// the system never stops without a pair, and a process that is left alone first makes another.
#[test]
fn whoever_dies_at_whatever_step_the_rest_carries_on() {
    let states = explore(5, SHIPPED).unwrap_or_else(|(fault, world)| panic!("{fault}: {world:?}"));
    assert!(states > 1_000, "{states} states are no search");
}

/// The search finds what it is for: a daemon that trusts a dismissed standby, or makes none.
#[test]
fn the_search_finds_a_wrong_rule() {
    let trusting: Rule = |made_with_one, _| !made_with_one;
    let careless: Rule = |_, _| false;
    for rule in [trusting, careless] {
        assert!(explore(3, rule).is_err());
    }
}
