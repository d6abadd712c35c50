//! `kaai-builder`: the builder as a process of its own.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = builder::Args::parse();
    let rt = runtime::start("builder", &args.common, Some(&args.store)).await?;
    builder::run(args.try_into()?, rt.clone()).await?;
    rt.finish().await
}
