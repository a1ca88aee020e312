//! `stats` and `resources`: what the machine and the services use.

use crate::harness::eventually;
use crate::machine::Machine;

fn machine() -> Machine {
    let machine = Machine::new(&[(
        "shop.toml",
        "[service.web]\ncommand = \"sleep 1000\"\n[service.busy]\nshell = \"while :; do :; done\"\nnice = 10\n",
    )]);
    machine.project.write("daemon.toml", "manifests = \"services\"\n[samples]\ninterval = \"100ms\"\n");
    machine
}

#[test]
fn stats_and_resources_show_the_machine_with_all_its_parts() {
    let mut machine = machine();
    machine.start();
    let json = |args: &[&str]| machine.project.json(args);
    eventually("there are two samples", || {
        let stats = json(&["stats", "--json"]);
        stats["resources"]["cpu_percent"].is_number()
            && json(&["status", "busy", "--json"])["services"][0]["cpu_percent"].is_number()
    });
    let stats = json(&["stats", "--json"]);
    let resources = &stats["resources"];
    assert_eq!(
        resources["per_core"].as_array().map(Vec::len),
        resources["cores"].as_u64().map(|n| n as usize)
    );
    assert!(
        resources["trends"]["memory_percent"]["average"].as_f64().is_some_and(|used| used > 0.0),
        "{stats}"
    );
    assert!(
        resources["disks"].is_array()
            && resources["networks"].is_array()
            && resources["pressure"].is_object() | resources["pressure"].is_null()
    );
    let thresholds = &stats["thresholds"];
    for (name, want) in [("cpu", 85.0), ("memory", 90.0), ("disk", 95.0), ("load", 0.8)] {
        assert_eq!(thresholds[name], want, "{name}");
    }
    let found = json(&["resources", "busy", "--json"]);
    let busy = &found["histories"][0];
    assert_eq!(busy["of"], "busy");
    assert!(busy["trends"]["cpu_percent"]["peak"].as_f64().is_some_and(|cpu| cpu > 5.0), "{found}");
    assert_eq!(busy["points"][0]["levels"]["processes"]["peak"], 1.0);
    let text = machine.regrow(&["resources", "web"]);
    assert!(
        text.stdout.starts_with("OF   MEASURE") && text.stdout.contains("web  memory"),
        "{}",
        text.stdout
    );
    let unknown = machine.regrow(&["resources", "wbe"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("there is no service \"wbe\""), "{}", unknown.stderr);
    // `--watch` shows the figures again and again, until the tree that is watched ends.
    let mut command = machine.project.command(&["stats", "--watch", "--every", "100ms"]);
    let mut watch = machine.project.start(&mut command);
    watch.line("machine    CPU");
    watch.next_line("machine    CPU");
    machine.down();
    assert_eq!(watch.code(), 0);
}
