//! `simulate`: runs drawn plans, and says which break a promise.

use chancery_simulation::{Outcome, Plan, World, run};
use clap::Parser;
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

/// Runs whole meshes in one thread on a seeded network, and checks after each run
/// that nothing was lost, doubled, disordered or left behind.
#[derive(Parser)]
struct Args {
    /// How many runs.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Seed of the first one.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Operations in a run.
    #[arg(long, default_value_t = 600)]
    ops: usize,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Looks for no shorter plan when one fails.
    #[arg(long)]
    as_drawn: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let began = Instant::now();
    let (mut steps, mut letters, mut arrived, mut kills, mut breaks) = (0, 0, 0, 0, 0);
    for seed in args.first..args.first + args.seeds {
        let plan = Plan::draw(seed, args.ops);
        let outcome = run(&plan);
        if outcome.violation.is_some() {
            explain(seed, &outcome);
            if !args.as_drawn {
                shorten(&outcome, plan);
            }
            return ExitCode::FAILURE;
        }
        steps += outcome.steps;
        letters += outcome.letters;
        arrived += outcome.arrived;
        kills += outcome.kills;
        breaks += outcome.breaks;
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = steps as f64 / seconds;
    if args.json {
        let found = json!({
            "seeds": args.seeds, "steps": steps, "letters": letters, "arrived": arrived,
            "kills": kills, "breaks": breaks, "seconds": seconds, "steps_per_s": rate.round(),
            "violations": 0,
        });
        println!("{found}");
    } else {
        println!(
            "{} runs, {steps} steps, {letters} letters ({arrived} arrived, the others expired)",
            args.seeds
        );
        println!("{kills} kills, {breaks} broken connections, no promise broken");
        println!("{seconds:.1} s, {rate:.0} steps/s");
    }
    ExitCode::SUCCESS
}

fn explain(seed: u64, outcome: &Outcome) {
    let Some((violation, about)) = &outcome.violation else { return };
    println!("seed {seed}: {violation} after {} steps\n  {about}", outcome.steps);
}

fn shorten(outcome: &Outcome, plan: Plan) {
    let Some((violation, _)) = &outcome.violation else { return };
    let kind = std::mem::discriminant(violation);
    let fails = |plan: &Plan| {
        run(plan).violation.is_some_and(|(violation, _)| std::mem::discriminant(&violation) == kind)
    };
    let shorter = plan.shrink(fails);
    let outcome = World::new(&shorter).traced().run();
    println!("the shortest plan found that fails so:\n{shorter}");
    for line in outcome.trace.iter().rev().take(200).rev() {
        println!("{line}");
    }
    if let Some((violation, about)) = outcome.violation {
        println!("{violation}\n  {about}");
    }
}
