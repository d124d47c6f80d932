//! The tables for people.

use comfy_table::{Cell as TableCell, CellAlignment, Color, Table, presets::NOTHING};

use crate::terminal;

use super::{
    experiment::Experiment,
    goal::Verdict,
    machine::Machine,
    peer::{Peer, Source},
    report::{Cell, Report, Row},
};

pub(super) fn print(report: &Report) {
    print_head(report);
    let mut baselines: Vec<_> = report
        .rows
        .iter()
        .map(|row| row.experiment.baseline())
        .collect();
    baselines.dedup();
    for baseline in baselines {
        let rows = report.rows.iter();
        let rows: Vec<_> = rows
            .filter(|row| row.experiment.baseline() == baseline)
            .collect();
        println!("\n{}", of_baseline(baseline, &rows));
    }
    print_verdicts(report);
}

fn print_head(report: &Report) {
    let Machine { kernel, cores, .. } = &report.machine;
    println!(
        "\nLinux {kernel}, {cores} cores shared by client, proxy and server; medians; {:.0} s",
        report.seconds
    );
    println!(
        "{}",
        terminal::dim(
            "Differences under 15 % are noise. x: of tproxy, median of the rounds' ratios."
        )
    );
    if report.source == Source::Client {
        println!("The proxies keep the client's address: the server sees it.");
    }
    report.machine.print_if_busy();
    for peer in peers(&report.rows.iter().collect::<Vec<_>>()) {
        println!("  {:<11} {}", peer.head(), peer.name());
    }
}

/// In the order of their columns.
fn peers(rows: &[&Row]) -> Vec<Peer> {
    let mut peers: Vec<_> = rows
        .iter()
        .flat_map(|row| row.cells.keys().copied())
        .collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

/// The experiments that are compared with the same baseline share one table, so that their columns line
/// up.
fn of_baseline(baseline: Peer, rows: &[&Row]) -> Table {
    let peers = peers(rows);
    let with_baseline = baseline != Peer::Direct;
    let mut header = vec![String::new()];
    header.extend(peers.iter().map(|peer| peer.head().to_owned()));
    if with_baseline {
        header.push(format!("x {}", baseline.head()));
    }
    header.extend(["x direct", "goal", "met"].map(str::to_owned));
    let mut table = Table::new();
    let columns = header.len();
    table.load_style(NOTHING).set_header(header);
    let mut last: Option<Experiment> = None;
    for row in rows {
        if last != Some(row.experiment) {
            last = Some(row.experiment);
            let title = TableCell::new(row.experiment.title());
            table.add_row(vec![title.add_attribute(comfy_table::Attribute::Bold)]);
        }
        table.add_row(cells(row, &peers, with_baseline));
        if row.quantity != row.experiment.headline() {
            continue;
        }
        let to_baseline: Ratio = |cell| cell.to_baseline;
        let to_direct: Ratio = |cell| cell.to_direct;
        let others = [(baseline, to_baseline), (Peer::Direct, to_direct)];
        for (other, ratio) in &others[usize::from(!with_baseline)..] {
            if row.cells.values().any(|cell| ratio(cell).is_some()) {
                let name = format!("    x {}", other.head());
                table.add_row(ratios(name, row, &peers, *ratio));
            }
        }
    }
    for column in 1..columns {
        let is_text = column + 2 >= columns;
        if let Some(column) = table.column_mut(column)
            && !is_text
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn cells(row: &Row, peers: &[Peer], with_baseline: bool) -> Vec<TableCell> {
    let quantity = row.quantity;
    let name = format!("  {} {}", quantity.name(), quantity.unit());
    let mut cells = vec![TableCell::new(name.trim_end())];
    cells.extend(peers.iter().map(|peer| {
        let cell = row.cells.get(peer);
        TableCell::new(cell.map_or_else(|| "-".into(), |cell| quantity.text(cell.value)))
    }));
    let own = row.cells.get(&Peer::Tproxy);
    let ratio = |ratio: Option<f64>| {
        TableCell::new(ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")))
    };
    if with_baseline {
        cells.push(ratio(own.and_then(|own| own.to_baseline)));
    }
    cells.push(ratio(own.and_then(|own| own.to_direct)));
    cells.push(TableCell::new(row.goal.as_deref().unwrap_or("")));
    cells.push(match row.verdict {
        Some(Verdict::Missed) => TableCell::new(Verdict::Missed.text()).fg(Color::Red),
        verdict => TableCell::new(verdict.map_or("", Verdict::text)),
    });
    cells
}

type Ratio = fn(&Cell) -> Option<f64>;

/// Of every peer, where the row says most about its experiment.
fn ratios(name: String, row: &Row, peers: &[Peer], ratio: Ratio) -> Vec<TableCell> {
    let ratios = peers.iter().map(|peer| {
        let ratio = row.cells.get(peer).and_then(ratio);
        TableCell::new(ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")))
    });
    [TableCell::new(name)].into_iter().chain(ratios).collect()
}

fn print_verdicts(report: &Report) {
    let count = |verdict| {
        let rows = report.rows.iter();
        rows.filter(|row| row.verdict == Some(verdict)).count()
    };
    let (met, noise, missed) = (
        count(Verdict::Met),
        count(Verdict::WithinNoise),
        count(Verdict::Missed),
    );
    println!("\nGoals: {met} met, {noise} missed within noise, {missed} missed\n");
}
