"""Images as cells of tables: Parquet files and Hugging Face data sets."""
