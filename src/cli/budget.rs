//! `budget`: what was spent and what is held, and corrections of it.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::DONE;
use crate::clock;
use crate::config::Config;
use crate::limits::{CORRECTION_REASON_BYTES_MAX, CORRECTION_WAIT_MAX, CORRECTIONS_EVERY};
use crate::money::account::{Change, Correction, SpendingAccount};
use crate::money::{Caps, Limits, SPANS, Span, Usd};
use crate::request::client::UNLISTED;
use crate::store::corrections;
use crate::store::ledger::{self, Applied};

#[derive(Debug, Subcommand)]
pub(super) enum BudgetCommand {
    /// Print what was spent and what is held for running calls, by application and calendar span (UTC).
    Show {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Correct what counts as spent in the present hour, day and month.
    ///
    /// The correction is appended to the ledger with its reason; a running service applies it within
    /// seconds.
    Correct(CorrectArgs),
}

#[derive(Debug, Args)]
pub(super) struct CorrectArgs {
    /// Application, as `budget show` names it.
    #[arg(long)]
    app: String,
    /// US dollars that were not spent; `all` for all that it has spent. Holds of running calls stay.
    #[arg(
        long,
        value_name = "USD",
        allow_hyphen_values = true,
        required_unless_present = "add",
        conflicts_with = "add"
    )]
    subtract: Option<Dollars>,
    /// US dollars that were spent besides.
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    add: Option<Dollars>,
    /// Why, for whoever reads the ledger later.
    #[arg(long)]
    reason: String,
}

/// An amount on the command line.
#[derive(Debug, Clone, Copy)]
struct Dollars(Usd);

/// The largest amount that can be written, in US dollars.
const AMOUNT_MAX: f64 = 1_000_000.0;

impl FromStr for Dollars {
    type Err = String;

    fn from_str(text: &str) -> Result<Dollars, String> {
        if text == "all" {
            return Ok(Dollars(Usd::MOST));
        }
        let dollars: Option<f64> = text.parse().ok();
        let dollars = dollars.filter(|usd| *usd > 0.0 && *usd <= AMOUNT_MAX);
        let dollars =
            dollars.ok_or(format!("must be US dollars, above 0 to {AMOUNT_MAX}, or all"))?;
        Ok(Dollars(Usd::at_least(dollars)))
    }
}

impl BudgetCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// If there is no ledger, or it can't be read or written.
    pub(super) async fn run(self, config: &Config) -> anyhow::Result<u8> {
        let Some(folder) = config.state.as_deref() else {
            bail!("there is no state folder, so nothing is recorded; set PILOTLIGHT_STATE");
        };
        let caps = &config.catalog.caps;
        match self {
            BudgetCommand::Show { json } => {
                let account = ledger::account(folder, ledger::hour());
                let account = account.with_context(|| damaged(folder))?.unwrap_or_default();
                if json {
                    print_line!("{:#}", as_json(&account, caps));
                } else {
                    print(&account, caps)?;
                }
            }
            BudgetCommand::Correct(args) => {
                let correction = args.checked(folder)?;
                corrections::put(folder, &correction)
                    .with_context(|| format!("nothing was corrected in {}", folder.display()))?;
                let applied = ledger::apply_corrections(folder)
                    .context("the correction waits; the next start of the service applies it")?;
                match applied {
                    Applied::Now => {}
                    Applied::ByService => await_service(folder, &correction).await?,
                }
                let account = ledger::account(folder, ledger::hour());
                print(&account.with_context(|| damaged(folder))?.unwrap_or_default(), caps)?;
            }
        }
        Ok(DONE)
    }
}

impl CorrectArgs {
    fn checked(self, folder: &Path) -> anyhow::Result<Correction> {
        let CorrectArgs { app, subtract, add, reason } = self;
        let is_text = !reason.trim().is_empty() && !reason.chars().any(char::is_control);
        if !is_text || reason.len() > CORRECTION_REASON_BYTES_MAX {
            bail!("--reason must be one line of 1 to {CORRECTION_REASON_BYTES_MAX} bytes");
        }
        let account = ledger::account(folder, ledger::hour());
        let Some(account) = account.with_context(|| damaged(folder))? else {
            bail!("there is no ledger in {}: nothing was spent", folder.display());
        };
        if !account.spenders().any(|known| known == app) {
            let known: Vec<&str> = account.spenders().collect();
            bail!("{app:?} has spent nothing this month; applications: {}", known.join(", "));
        }
        let change = match (subtract, add) {
            (Some(Dollars(usd)), _) => Change::Subtract(usd),
            (None, Some(Dollars(Usd::MOST))) => bail!("--add needs an amount in US dollars"),
            (None, Some(Dollars(usd))) => Change::Add(usd),
            (None, None) => bail!("--subtract or --add is required"),
        };
        Ok(Correction { id: fastrand::u64(..), app, change, reason, at: account.now() })
    }
}

fn damaged(folder: &Path) -> String {
    format!(
        "the ledger in {} cannot be read; the service renames it at its start and counts all budgets \
         as used up",
        folder.display()
    )
}

/// Waits until the running service has applied the correction.
async fn await_service(folder: &Path, correction: &Correction) -> anyhow::Result<()> {
    let end = clock::now() + CORRECTION_WAIT_MAX;
    // bounded by time
    while corrections::is_waiting(folder, correction) {
        if clock::now() >= end {
            bail!(
                "the running service has not applied the correction within {CORRECTION_WAIT_MAX:?}; \
                 it will do so when it can write its ledger, or at its next start"
            );
        }
        tokio::time::sleep(CORRECTIONS_EVERY.min(Duration::from_millis(100))).await;
    }
    Ok(())
}

fn print(account: &SpendingAccount, caps: &Caps) -> std::io::Result<()> {
    print_line!("all: {}", spans(account, None, &caps.device));
    for app in account.spenders() {
        let name = match app {
            "" => "(a damaged ledger, --app \"\")",
            UNLISTED => "+ (applications that are not listed)",
            app => app,
        };
        print_line!("{name}: {}", spans(account, Some(app), caps.of(app)));
    }
    for Correction { app, change, reason, .. } in account.corrections() {
        let change = match change {
            Change::Subtract(Usd::MOST) => "all subtracted".to_owned(),
            Change::Subtract(usd) => format!("{usd} subtracted"),
            Change::Add(usd) => format!("{usd} added"),
        };
        print_line!("correction of {app}: {change}: {reason}");
    }
    Ok(())
}

/// The amounts of each span in one line.
fn spans(account: &SpendingAccount, app: Option<&str>, limits: &Limits) -> String {
    let span = |span: Span| {
        let (spent, held) = (account.spent(app, span), account.held(app, span));
        let held = if held.is_none() { String::new() } else { format!(" ({held} held)") };
        let cap = limits.of(span).map_or(String::new(), |cap| format!(" of {cap}"));
        format!("{spent}{held}{cap} this {}", span.name())
    };
    SPANS.map(span).join(", ")
}

fn as_json(account: &SpendingAccount, caps: &Caps) -> Value {
    let of = |app: Option<&str>, limits: &Limits| {
        let span = |span: Span| {
            let cap = limits.of(span).map(Usd::dollars);
            let spent = account.spent(app, span).dollars();
            let figures = json!({
                "spent_usd": spent, "held_usd": account.held(app, span).dollars(), "cap_usd": cap
            });
            (span.name().to_owned(), figures)
        };
        Value::from_iter(SPANS.map(span))
    };
    let apps = account.spenders().map(|app| (app.to_owned(), of(Some(app), caps.of(app))));
    let correction = |correction: &Correction| {
        let Correction { app, change, reason, .. } = correction;
        let (name, usd) = match change {
            Change::Subtract(usd) => ("subtracted_usd", usd),
            Change::Add(usd) => ("added_usd", usd),
        };
        // all that was spent, however much
        let usd = Some(*usd).filter(|usd| *usd != Usd::MOST).map(Usd::dollars);
        json!({"app": app, name: usd, "reason": reason})
    };
    let corrections: Vec<Value> = account.corrections().map(correction).collect();
    json!({
        "all": of(None, &caps.device),
        "apps": apps.collect::<Value>(),
        "corrections": corrections,
    })
}
