"""`governor report`: one page for those who will never see a dashboard."""
