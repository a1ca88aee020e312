//! Tests of the store on a file system, whole and damaged.

use super::*;
use crate::model::cause::StartCause;
use crate::model::exit::{EndedBy, Exit, ExitOutcome};
use crate::model::history::{Level, Measure};
use crate::model::{Command, Denial, DenialCode, Goal, Name, Requester, Selector, ServiceSpec};

const EVENTS: u64 = 40;

fn plan() -> Arc<Plan> {
    let services = ["a", "b"].map(|name| ServiceSpec::new(Name::new(name).unwrap(), ["x"]));
    Arc::new(Plan::of("test", services.to_vec()))
}

fn id(name: &str) -> InstanceId {
    InstanceId::sole(Name::new(name).unwrap())
}

/// Applies events to the tree state and passes them to the store, as the event log does.
struct Log {
    tree_state: TreeState,
    store: Store,
    seq: u64,
}

impl Log {
    fn new(store: Store, last: u64) -> Log {
        let tree_state = TreeState::new(plan(), SystemTime::UNIX_EPOCH).unwrap();
        store.register(&plan());
        Log { tree_state, store, seq: last }
    }

    fn tell(&mut self, fact: Fact) {
        self.seq += 1;
        let since_start = Duration::from_secs(self.seq);
        let event = Arc::new(Event { seq: self.seq, at: SystemTime::now(), since_start, fact });
        self.tree_state.apply(&event);
        self.store.event(&event, &self.tree_state);
    }

    /// Appends the events of one incarnation, from its start to its crash.
    fn life(&mut self, name: &str, number: u64) {
        let (instance, incarnation) = (id(name), Incarnation(number));
        let exit = ExitOutcome::Process { exit: Exit::Code(3), ended: EndedBy::ByItself, reason: None };
        for fact in [
            Fact::Instance(InstanceFact::GoalSet { instance: instance.clone(), goal: Goal::Up }),
            Fact::Instance(InstanceFact::Starting {
                instance: instance.clone(),
                incarnation,
                cause: StartCause::Policy,
            }),
            Fact::Instance(InstanceFact::Running { instance: instance.clone(), incarnation, pid: Some(7) }),
            Fact::Instance(InstanceFact::Exited {
                instance: instance.clone(),
                incarnation,
                exit: exit.clone(),
                uptime: Duration::from_secs(1),
            }),
            Fact::Instance(InstanceFact::Crashed { instance, exit, retry_in: Duration::ZERO, attempt: 1 }),
        ] {
            self.tell(fact);
        }
    }
}

fn open(path: &Path) -> (Store, Memory) {
    Store::open(path, Retention { events: EVENTS, ..Retention::default() }).unwrap()
}

#[test]
fn what_was_told_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/regrow.db");
    let (store, memory) = open(&path);
    assert!(memory.pasts.is_empty() && memory.last_event == 0 && memory.trouble.is_none());
    let mut log = Log::new(store.clone(), 0);
    store.begin("boot", Duration::from_nanos(5), Vec::new());
    log.life("a", 1);
    log.tell(Fact::Instance(InstanceFact::GoalSet { instance: id("b"), goal: Goal::Down }));
    store.life(&id("b"), Incarnation(1), "life".to_owned());
    store.flush();
    let (_, memory) = open(&path);
    let past = &memory.pasts["a"];
    assert_eq!((past.state, past.goal, past.restarts, past.attempts), (State::Crashed, Goal::Up, 1, 1));
    assert_eq!((memory.last_event, memory.boot.as_deref(), memory.ended), (6, Some("boot"), false));
    assert_eq!(memory.since, Some(Duration::from_nanos(5)));
    assert_eq!(memory.lives, [("b".to_owned(), Incarnation(1), "life".to_owned())]);
    let events = store.last_events(2, &about("a"), 2).unwrap();
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [4, 5]);
    let lived = store.incarnations("a", 10).unwrap();
    assert_eq!(lived.len(), 1);
    assert_eq!(lived[0].exit, Some(serde_json::json!({"code": 3, "ended": "by_itself"})));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

fn about(instance: &str) -> EventFilter {
    EventFilter { instances: Some([instance.to_owned()].into()), ..EventFilter::default() }
}

#[test]
fn events_are_found_by_state_and_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("regrow.db")).0;
    let mut log = Log::new(store.clone(), 0);
    log.life("a", 1);
    log.life("b", 1);
    store.flush();
    let numbers = |events: Vec<Event>| events.iter().map(|event| event.seq).collect::<Vec<_>>();
    let all = numbers(store.last_events(0, &EventFilter::default(), usize::MAX).unwrap());
    let last = *all.last().unwrap();
    assert_eq!(all, (1..=last).collect::<Vec<_>>());
    let running = EventFilter { states: vec![State::Running], ..EventFilter::default() };
    let found = store.last_events(0, &running, usize::MAX).unwrap();
    assert!(
        found.len() == 2
            && found.iter().all(|event| matches!(event.fact, Fact::Instance(InstanceFact::Running { .. }))),
        "{found:?}"
    );
    assert!(
        found.iter().all(|event| running.fits(event) && about("a").fits(event) != about("b").fits(event))
    );
    assert_eq!(numbers(store.first_events(2, last, &EventFilter::default(), 3).unwrap().0), [3, 4, 5]);
    assert_eq!(
        numbers(store.first_events(last - 2, last, &EventFilter::default(), 3).unwrap().0),
        [last - 1]
    );
}

#[test]
fn answers_are_found_by_whose_they_are_and_the_trail_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("regrow.db")).0;
    let entry = |what: &str, allowed: bool| AuditEntry {
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        who: "token:a".to_owned(),
        action: "stop".to_owned(),
        resource: what.to_owned(),
        allowed,
        reason: (!allowed).then(|| "not granted".to_owned()),
    };
    store.audit(entry("web", true));
    store.audit(entry("db", false));
    store.keep_answer("token:a", "key", "hash", 200, "{}".to_owned());
    let mut log = Log::new(store.clone(), 0);
    let command = Box::new(Command::Stop { select: Selector::named(["web"]), force: false });
    let by = |key: &str| Some(Box::new(Requester { key: Some(key.to_owned()), ..Requester::new("token:a") }));
    log.tell(Fact::Tree(TreeFact::CommandAccepted { command: command.clone(), by: by("taken") }));
    let denial = Denial { code: DenialCode::NotFound, reason: "x".to_owned(), hint: None };
    log.tell(Fact::Tree(TreeFact::CommandDenied { command, by: by("denied"), denial: Box::new(denial) }));
    store.flush();
    assert_eq!(store.audited(None, 10).unwrap(), [entry("web", true), entry("db", false)]);
    assert_eq!(store.audited(None, 1).unwrap(), [entry("db", false)]);
    assert_eq!(store.audited(Some(SystemTime::now()), 10).unwrap(), []);
    let answer = store.answer("token:a", "key").unwrap().unwrap();
    assert_eq!((answer.asked.as_str(), answer.status, answer.body.as_str()), ("hash", 200, "{}"));
    assert_eq!(store.answer("token:b", "key").unwrap(), None);
    let taken = store.was_taken("token:a", None, "taken").unwrap().unwrap();
    assert!(taken.seq == 1 && taken.command.contains("\"stop\""), "{taken:?}");
    assert_eq!(store.was_taken("token:b", None, "taken").unwrap(), None);
    assert_eq!(store.was_taken("token:a", None, "denied").unwrap(), None);
    // A token of the same name that was made later is a different one.
    let made = SystemTime::now() + Duration::from_secs(1);
    assert_eq!(store.was_taken("token:a", Some(made), "taken").unwrap(), None);
}

#[test]
fn the_end_of_a_tree_is_no_wish_of_the_users() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("regrow.db");
    let mut log = Log::new(open(&path).0, 0);
    log.tell(Fact::Instance(InstanceFact::GoalSet { instance: id("a"), goal: Goal::Up }));
    log.tell(Fact::Tree(TreeFact::ShutdownStarted { cause: "test".to_owned() }));
    log.tell(Fact::Instance(InstanceFact::GoalSet { instance: id("a"), goal: Goal::Down }));
    log.tell(Fact::Tree(TreeFact::ShutdownDone));
    log.store.flush();
    let (_, memory) = open(&path);
    assert!(memory.ended && memory.pasts["a"].goal == Goal::Up);
}

#[test]
fn a_store_that_is_torn_anywhere_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("regrow.db");
    let mut log = Log::new(open(&path).0, 0);
    for number in 1..50 {
        log.life("a", number);
    }
    log.store.flush();
    drop(log);
    let whole = |suffix: &str| std::fs::read(format!("{}{suffix}", path.display())).unwrap_or_default();
    let (file, wal) = (whole(""), whole("-wal"));
    let connection = Connection::open(&path).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let full = whole("");
    let mut set_aside = 0;
    for part in 0..24 {
        let torn = folder.path().join(format!("torn-{part}.db"));
        let cut = |bytes: &[u8]| bytes[..bytes.len() * part / 24].to_vec();
        let (file, wal) = match part % 3 {
            0 => (cut(&file), wal.clone()),
            1 => (file.clone(), cut(&wal)),
            _ => (cut(&full), Vec::new()),
        };
        std::fs::write(&torn, file).unwrap();
        std::fs::write(format!("{}-wal", torn.display()), wal).unwrap();
        let (store, memory) = open(&torn);
        set_aside += usize::from(memory.trouble.is_some());
        let mut log = Log::new(store.clone(), memory.last_event);
        log.life("a", 99);
        store.flush();
        assert_eq!(open(&torn).1.pasts["a"].incarnation, Incarnation(99), "{part}");
    }
    assert!(set_aside > 0, "some of them were beyond use");
    let garbage = folder.path().join("garbage.db");
    std::fs::write(&garbage, vec![b'x'; 9000]).unwrap();
    let (_, memory) = open(&garbage);
    assert!(memory.trouble.unwrap().contains("set aside"));
}

#[test]
fn old_events_go_and_readers_see_whole_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("regrow.db");
    let (store, _) = open(&path);
    let mut log = Log::new(store.clone(), 0);
    let reading = store.clone();
    let reader = std::thread::spawn(move || {
        for _ in 0..50 {
            let events = reading.last_events(0, &EventFilter::default(), usize::MAX).unwrap();
            assert!(events.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
        }
    });
    for number in 1..3_000 {
        log.life("b", number);
    }
    reader.join().unwrap();
    let events = || store.last_events(0, &EventFilter::default(), usize::MAX).unwrap();
    // A flush does not wait for ever: on a busy machine it may return before everything is written.
    let all_there = || {
        store.flush();
        events().last().is_some_and(|event| event.seq == log.seq)
    };
    assert!((0..15).any(|_| all_there()), "{:?} of {}", events().last().map(|event| event.seq), log.seq);
    let events = events();
    assert!(events.len() < 8_000, "{} are kept", events.len());
    assert!(store.incarnations("b", usize::MAX).unwrap().len() < 2_999);
}

#[test]
fn the_next_supervisor_has_what_was_measured_lately() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("regrow.db");
    let retention = Retention { events: 10, samples: Duration::from_secs(3600), ..Retention::default() };
    let (store, _) = Store::open(&path, retention).unwrap();
    let point = |ago: u64| {
        let levels = [(Measure::CpuPercent, Level { mean: ago as f64, peak: 99.0 })].into();
        // The store keeps times in milliseconds.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let at = Duration::from_millis(u64::try_from(now).unwrap()) - Duration::from_secs(ago);
        HistoryPoint { at: SystemTime::UNIX_EPOCH + at, samples: 4, levels }
    };
    let (old, of_machine, of_web) = (point(7200), point(120), point(60));
    store.resources(vec![(None, old), (None, of_machine.clone()), (Some("web".to_owned()), of_web.clone())]);
    store.flush();
    drop(store);
    let (store, _) = Store::open(&path, retention).unwrap();
    let mut told = Vec::new();
    store.past_resources(Duration::from_secs(3600), &mut |point| told.push(point));
    assert_eq!(told, [(None, of_machine), (Some("web".to_owned()), of_web)]);
}
