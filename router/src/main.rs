//! The router as a program.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = router::Args::parse();
    let rt = runtime::start("router", &args.common, None).await?;
    router::raise_open_file_limit();
    router::run(args.try_into()?, rt.clone()).await?;
    rt.finish().await
}
